// exp and log over `vec.hpp`'s vectors. Included only by per-ISA sources.
#pragma once

#include "vec.hpp"

namespace obverse::OBVERSE_ISA_NS {

constexpr float kExpLow = -87.33654F;  // below it exp is subnormal, and taken as 0

/// p 2^n where x is not below kExpLow, else 0. `n` also stands in the low bits of `shifted`.
OBVERSE_INLINE vf raised(vf p, [[maybe_unused]] vf n, [[maybe_unused]] vf shifted, vf x) {
#if defined(__AVX512F__)
  const __mmask16 seen =
      _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(kExpLow), _CMP_NLT_UQ);
  return reinterpret_cast<vf>(
      _mm512_maskz_scalef_ps(seen, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  const vf scale = as_float((as_int(shifted) + (127 - 0x4b400000)) << 23);
  return x < kExpLow ? vf{} : p * scale;
#endif
}

/// exp(x) for x - where `x` is at most about 0.35: 0 for x below kExpLow (-inf too), NaN stays. `n` is x / ln 2
/// rounded, in the low bits of `shifted` = x log2(e) + 1.5 * 2^23. Error 1 ulp near 0, 5 ulp near kExpLow
/// (where x = z - top has itself been rounded by more).
OBVERSE_INLINE vf exp_shifted(vf x, vf shifted) {
  const vf n = shifted - 12582912.0F;
  // One rounding of ln 2 is enough: it is 1.9e-9 off, so n times that is 2.4e-7 at worst.
#if defined(__FMA__)
  const vf r = x - n * 0.693147182F;
#else
  const vf r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
#endif
  vf p = splat(8.31238328e-3F);
  p = p * r + 4.18914259e-2F;
  p = p * r + 1.66671200e-1F;
  p = p * r + 4.99992229e-1F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  return raised(p, n, shifted, x);
}
OBVERSE_INLINE vf exp_below(vf x) { return exp_shifted(x, x * 1.44269504F + 12582912.0F); }

/// exp(z - base - also) as `exp_below`, within 1 ulp: what the differences lost to rounding (up to 6 ulp of the
/// result at z - base = -100) is found again and added to the reduced argument. `also` may be left out.
template <typename... Also>
OBVERSE_INLINE vf exp_exactly_below(vf z, vf base, Also... also) {
  vf x = z - base;
  vf back = x - z;
  vf lost = (z - (x - back)) - (base + back);
  if constexpr (sizeof...(also) == 1) {
    const vf first = x;
    const vf less = (also, ...);
    x = first - less;
    back = x - first;
    lost += (first - (x - back)) - (less + back);
  }
  const vf shifted = x * 1.44269504F + 12582912.0F;
  const vf n = shifted - 12582912.0F;
  const vf r = ((x - n * 0.693359375F) - n * -2.12194440e-4F) + lost;
  vf p = splat(1.38141740e-3F);
  p = p * r + 8.36892193e-3F;
  p = p * r + 4.16684080e-2F;
  p = p * r + 1.66665189e-1F;
  p = p * r + 4.99999933e-1F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  return raised(p, n, shifted, x);
}

/// exp(z - base) or exp(z - base - also) of logits that were T: a difference of 16-bit numbers has next to no
/// rounding to find again.
template <typename T, typename... Also>
OBVERSE_INLINE vf exp_of(vf z, vf base, Also... also) {
  if constexpr (sizeof(T) == sizeof(float)) return exp_exactly_below(z, base, also...);
  if constexpr (sizeof...(also) == 1) return exp_below((z - base) - (also, ...));
  return exp_below(z - base);
}

/// exp(x) for any x: inf above 88.72, 0 below kExpLow, NaN stays.
OBVERSE_INLINE vf vexp(vf x) {
  const vf held = vmin(splat(100.0F), vmax(splat(-100.0F), x));
  const vf shifted = held * 1.44269504F + 12582912.0F;
  const vf n = shifted - 12582912.0F;
  const vf r = (held - n * 0.693359375F) - n * -2.12194440e-4F;
  vf p = splat(1.38141740e-3F);
  p = p * r + 8.36892193e-3F;
  p = p * r + 4.16684080e-2F;
  p = p * r + 1.66665189e-1F;
  p = p * r + 4.99999933e-1F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  // 2^n in two factors: 2^128 is not a float, though 2^128 times a p below 1 may be.
  const vi whole = as_int(shifted) - 0x4b400000;
  const vi half = whole >> 1;
  const vf y = p * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
  return held < kExpLow ? vf{} : y;
}

/// (2 / 3) q + (2 / 5) q^2 + ...: what atanh's series adds, q = s * s at most 0.04 (next term below 4e-10).
OBVERSE_INLINE vf atanh_series(vf q) {
  vf r = splat(2.0F / 11.0F);
  r = r * q + 2.0F / 9.0F;
  r = r * q + 2.0F / 7.0F;
  r = r * q + 2.0F / 5.0F;
  r = r * q + 2.0F / 3.0F;
  return r * q;
}

/// log(1 + r) for 0 <= r <= 1/2 with full relative precision: 2 atanh(r / (2 + r)).
OBVERSE_INLINE vf log1p_small(vf r) {
  const vf s = r / (r + 2.0F);
  return r - s * (r - atanh_series(s * s));
}

/// log(x): -inf at 0, NaN below, inf at inf; within 1 ulp, near 1 too.
OBVERSE_INLINE vf vlog(vf x) {
  const vi tiny = x < 0x1p-126F;
  const vf y = tiny ? x * 0x1p23F : x;
  const vi above = as_int(y) - 0x3f3504f3;  // sqrt(1/2): the mantissa is taken in [sqrt(1/2), sqrt(2))
  const vi exponent = above >> 23;
  const vf f = as_float((above & 0x7fffff) + 0x3f3504f3) - 1.0F;
  const vf s = f / (f + 2.0F);
  const vf n = to_float(exponent) - (tiny ? splat(23.0F) : vf{});
  const vf part = f - s * (f - atanh_series(s * s));
  vf result = n * 0.693359375F + (part + n * -2.12194440e-4F);
  result = x == kInfinity ? x : result;
  result = x == 0.0F ? splat(-kInfinity) : result;
  return x >= 0.0F ? result : splat(kNan);
}

}  // namespace obverse::OBVERSE_ISA_NS
