// Vectors of floats for the kernels that are compiled once for every instruction set.
//
// Included only by sources that define OBVERSE_ISA_NS, the namespace of their instruction set: every name here
// then differs from one set to the next, so that the linker can't take one's code for another's. For the same
// reason such sources instantiate nothing of the standard library (a shared inline function compiled for AVX-512
// would be a trap on older processors).
#pragma once

#ifndef OBVERSE_ISA_NS
#error "define OBVERSE_ISA_NS to the instruction set's namespace before including vec.hpp"
#endif

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define OBVERSE_INLINE static inline __attribute__((always_inline, unused))

namespace obverse::OBVERSE_ISA_NS {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vh __attribute__((vector_size(2 * kLanes)));  // kLanes halves as they lie in memory

/// Logits' types in memory; the kernels compute in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();
constexpr float kNan = __builtin_nanf("");

OBVERSE_INLINE vf splat(float x) { return x - vf{}; }  // not vf{} + x: that would turn -0 into 0
OBVERSE_INLINE vi splat_int(int32_t x) { return x - vi{}; }
OBVERSE_INLINE vf as_float(vi x) { return reinterpret_cast<vf>(x); }
OBVERSE_INLINE vi as_int(vf x) { return reinterpret_cast<vi>(x); }
OBVERSE_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

/// 0, 1, 2, ...
OBVERSE_INLINE vi iota() {
  vi x{};
  for (int i = 0; i < kLanes; ++i) x[i] = i;
  return x;
}

// ---- bits of bfloat16 and float16 ----

OBVERSE_INLINE vf widen(vh h, bf16) {
#if defined(__AVX512F__)
  const vi x = reinterpret_cast<vi>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(h)));
#elif defined(__AVX2__)
  const vi x = reinterpret_cast<vi>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
#else
  const vi x = __builtin_convertvector(h, vi);
#endif
  return as_float(x << 16);
}

OBVERSE_INLINE vf widen(vh h, f16) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(h)));
#elif defined(__F16C__)
  return reinterpret_cast<vf>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h)));
#else
  const vi x = __builtin_convertvector(h, vi);
  const vi body = (x & 0x7fff) << 13;
  const vi exponent = x & 0x7c00;
  vi size = body + (112 << 23);
  size = exponent == 0 ? as_int(to_float(x & 0x3ff) * 0x1p-24F) : size;
  size = exponent == 0x7c00 ? (body | 0x7f800000) : size;
  return as_float(size | ((x & 0x8000) << 16));
#endif
}

/// To nearest, ties to even; a NaN stays one.
OBVERSE_INLINE vh narrow(vf x, bf16) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<vh>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const vi u = as_int(x);
  const vi rounded = u + 0x7fff + ((u >> 16) & 1);
  const vi kept = x == x ? rounded : (u | 0x400000);
  return __builtin_convertvector(kept >> 16, vh);
#endif
}

OBVERSE_INLINE vh narrow(vf x, f16) {
#if defined(__AVX512F__)
  return reinterpret_cast<vh>(_mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return reinterpret_cast<vh>(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  const vi u = as_int(x);
  const vi size = u & 0x7fffffff;
  const vi normal = (size - (112 << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  // 0.5's last place is the smallest subnormal: adding it rounds as wanted.
  const vi subnormal = as_int(as_float(size) + 0.5F) - 0x3f000000;
  vi h = size < 0x38800000 ? subnormal : normal;
  h = size >= 0x477ff000 ? splat_int(0x7c00) : h;
  h = size > 0x7f800000 ? splat_int(0x7e00) : h;
  return __builtin_convertvector(h | ((u >> 16) & 0x8000), vh);
#endif
}

// ---- memory: no alignment is asked for, but by `stream` ----

OBVERSE_INLINE vf load(const float* p) {
  vf x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
OBVERSE_INLINE vi load_int(const int32_t* p) {
  vi x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
OBVERSE_INLINE vh load_half(const void* p) {
  vh x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
OBVERSE_INLINE vf load(const bf16* p) { return widen(load_half(p), bf16{}); }
OBVERSE_INLINE vf load(const f16* p) { return widen(load_half(p), f16{}); }

OBVERSE_INLINE void store(float* p, vf x) { __builtin_memcpy(p, &x, sizeof x); }
OBVERSE_INLINE void store_int(int32_t* p, vi x) { __builtin_memcpy(p, &x, sizeof x); }
OBVERSE_INLINE void store_half(void* p, vh x) { __builtin_memcpy(p, &x, sizeof x); }
OBVERSE_INLINE void store(bf16* p, vf x) { store_half(p, narrow(x, bf16{})); }
OBVERSE_INLINE void store(f16* p, vf x) { store_half(p, narrow(x, f16{})); }

#if defined(__AVX512F__)
OBVERSE_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1U << n) - 1U); }
#elif defined(__AVX2__)
OBVERSE_INLINE __m256i first_lanes(int64_t n) {
  return reinterpret_cast<__m256i>(iota() < static_cast<int32_t>(n));
}
#endif

/// The first `n` (0 to kLanes) elements, `fill` after them; what lies behind them in memory is not touched.
OBVERSE_INLINE vf load_tail(const float* p, int64_t n, float fill = 0.0F) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_mask_loadu_ps(reinterpret_cast<__m512>(splat(fill)), first_lanes(n), p));
#elif defined(__AVX2__)
  const vf x = reinterpret_cast<vf>(_mm256_maskload_ps(p, first_lanes(n)));
  return reinterpret_cast<vi>(first_lanes(n)) ? x : splat(fill);
#else
  vf x = splat(fill);
  for (int i = 0; i < n; ++i) x[i] = p[i];
  return x;
#endif
}

OBVERSE_INLINE vh load_half_tail(const uint16_t* p, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return reinterpret_cast<vh>(_mm256_maskz_loadu_epi16(first_lanes(n), p));
#else
  alignas(64) uint16_t buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load_half(buffer);
#endif
}
OBVERSE_INLINE vf load_tail(const bf16* p, int64_t n, float fill = 0.0F) {
  const vf x = widen(load_half_tail(reinterpret_cast<const uint16_t*>(p), n), bf16{});
  return iota() < static_cast<int32_t>(n) ? x : splat(fill);
}
OBVERSE_INLINE vf load_tail(const f16* p, int64_t n, float fill = 0.0F) {
  const vf x = widen(load_half_tail(reinterpret_cast<const uint16_t*>(p), n), f16{});
  return iota() < static_cast<int32_t>(n) ? x : splat(fill);
}

OBVERSE_INLINE void store_tail(float* p, vf x, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, first_lanes(n), reinterpret_cast<__m512>(x));
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, first_lanes(n), reinterpret_cast<__m256>(x));
#else
  for (int i = 0; i < n; ++i) p[i] = x[i];
#endif
}
OBVERSE_INLINE void store_half_tail(uint16_t* p, vh x, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  _mm256_mask_storeu_epi16(p, first_lanes(n), reinterpret_cast<__m256i>(x));
#else
  alignas(64) uint16_t buffer[kLanes];
  store_half(buffer, x);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
#endif
}
OBVERSE_INLINE void store_tail(bf16* p, vf x, int64_t n) {
  store_half_tail(reinterpret_cast<uint16_t*>(p), narrow(x, bf16{}), n);
}
OBVERSE_INLINE void store_tail(f16* p, vf x, int64_t n) {
  store_half_tail(reinterpret_cast<uint16_t*>(p), narrow(x, f16{}), n);
}

/// Two vectors one behind the other.
template <typename T>
OBVERSE_INLINE void store2(T* p, vf x, vf y) {
  store(p, x);
  store(p + kLanes, y);
}
#if defined(__AVX512BF16__)
OBVERSE_INLINE __m512i narrow2(vf x, vf y) {
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(x)));
}
OBVERSE_INLINE void store2(bf16* p, vf x, vf y) { _mm512_storeu_si512(p, narrow2(x, y)); }
#endif

/// One vector of floats past the caches; `p` must lie on 4 * kLanes bytes.
OBVERSE_INLINE void stream(float* p, vf x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(x));
#elif defined(__AVX2__)
  _mm256_stream_ps(p, reinterpret_cast<__m256>(x));
#elif defined(__SSE2__)
  _mm_stream_ps(p, reinterpret_cast<__m128>(x));
#else
  store(p, x);
#endif
}

/// Two vectors past the caches, where the processor can; `p` must lie on 8 * kLanes bytes (float) or
/// 4 * kLanes (halves). `stream_end` must follow before another thread reads what was written.
OBVERSE_INLINE void stream2(float* p, vf x, vf y) {
  stream(p, x);
  stream(p + kLanes, y);
}
OBVERSE_INLINE void stream_halves(void* p, vh x, vh y) {
  struct pair {
    vh x, y;
  } both{x, y};
#if defined(__AVX512F__)
  __m512i bits;
  __builtin_memcpy(&bits, &both, sizeof bits);
  _mm512_stream_si512(static_cast<__m512i*>(p), bits);
#elif defined(__AVX2__)
  __m256i bits;
  __builtin_memcpy(&bits, &both, sizeof bits);
  _mm256_stream_si256(static_cast<__m256i*>(p), bits);
#elif defined(__SSE2__)
  __m128i bits;
  __builtin_memcpy(&bits, &both, sizeof bits);
  _mm_stream_si128(static_cast<__m128i*>(p), bits);
#else
  __builtin_memcpy(p, &both, sizeof both);
#endif
}
OBVERSE_INLINE void stream2(bf16* p, vf x, vf y) {
#if defined(__AVX512BF16__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), narrow2(x, y));
#else
  stream_halves(p, narrow(x, bf16{}), narrow(y, bf16{}));
#endif
}
OBVERSE_INLINE void stream2(f16* p, vf x, vf y) { stream_halves(p, narrow(x, f16{}), narrow(y, f16{})); }
OBVERSE_INLINE void stream_end() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// ---- arithmetic ----

/// The larger of two; `y` where either is NaN (so an accumulator in `y` keeps its value, a NaN in `y` stays).
OBVERSE_INLINE vf vmax(vf x, vf y) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_max_ps(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(y)));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(_mm256_max_ps(reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(y)));
#else
  return x > y ? x : y;
#endif
}
/// The smaller of two; `y` where either is NaN.
OBVERSE_INLINE vf vmin(vf x, vf y) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_min_ps(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(y)));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(_mm256_min_ps(reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(y)));
#else
  return x < y ? x : y;
#endif
}
/// The larger of two; NaN where either is.
OBVERSE_INLINE vf vmax_nan(vf x, vf y) { return x == x ? vmax(x, y) : x; }

/// The sum of the lanes, in a fixed order.
OBVERSE_INLINE double sum_lanes(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(reinterpret_cast<__m512>(x))) +
                              _mm512_cvtps_pd(_mm512_extractf32x8_ps(reinterpret_cast<__m512>(x), 1)));
#else
  double sum = 0.0;
  for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(x[i]);
  return sum;
#endif
}
/// The largest lane; NaN if any lane is.
OBVERSE_INLINE float max_lanes(vf x) {
#if defined(__AVX512F__)
  const __m512 all = reinterpret_cast<__m512>(x);
  return _mm512_cmp_ps_mask(all, all, _CMP_UNORD_Q) != 0 ? kNan : _mm512_reduce_max_ps(all);
#else
  float top = x[0];
  for (int i = 1; i < kLanes; ++i) top = x[i] > top || x[i] != x[i] ? x[i] : top;
  return top;
#endif
}

// ---- subnormals ----

/// While one lives, this thread's subnormal inputs and results are 0: they cost a hundred cycles each on some
/// processors, and no figure here has a use for them.
class SubnormalsOff {
 public:
#if defined(__SSE2__)
  __attribute__((always_inline)) SubnormalsOff() : kept_(_mm_getcsr()) { _mm_setcsr(kept_ | 0x8040U); }
  __attribute__((always_inline)) ~SubnormalsOff() { _mm_setcsr(kept_); }

 private:
  unsigned kept_;
#else
  __attribute__((always_inline)) SubnormalsOff() {}
  __attribute__((always_inline)) ~SubnormalsOff() {}
#endif

 public:
  SubnormalsOff(const SubnormalsOff&) = delete;
  SubnormalsOff& operator=(const SubnormalsOff&) = delete;
};

// ---- lanes of two vectors, as in sequences twice as long ----

/// Lane i of the result is lane place[i] of x with y behind it.
OBVERSE_INLINE vf shuffled(vf x, vf y, vi place) {
#if defined(__clang__)
  vf result;
  for (int i = 0; i < kLanes; ++i) result[i] = place[i] < kLanes ? x[place[i]] : y[place[i] - kLanes];
  return result;
#else
  return __builtin_shuffle(x, y, place);
#endif
}
OBVERSE_INLINE vf evens(vf x, vf y) { return shuffled(x, y, iota() * 2); }
OBVERSE_INLINE vf odds(vf x, vf y) { return shuffled(x, y, iota() * 2 + 1); }
OBVERSE_INLINE vf zip_low(vf x, vf y) { return shuffled(x, y, (iota() >> 1) + (iota() & 1) * kLanes); }
OBVERSE_INLINE vf zip_high(vf x, vf y) {
  return shuffled(x, y, (iota() >> 1) + (iota() & 1) * kLanes + kLanes / 2);
}
/// Lane i of the result is lane place[i] of x.
OBVERSE_INLINE vf permute(vf x, vi place) { return shuffled(x, x, place); }

}  // namespace obverse::OBVERSE_ISA_NS
