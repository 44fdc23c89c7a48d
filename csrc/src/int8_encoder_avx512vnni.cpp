// The kernels for AVX-512 with VNNI. Nothing of the standard library is instantiated here (see vec.hpp), and the
// operations of a row are the same whichever rows it shares a tile with.
#include <immintrin.h>

#include "int8_encoder_kernels.hpp"

namespace obverse {
namespace {

constexpr int64_t kGroup = 64, kPanel = 48;

inline __attribute__((always_inline)) __m512 splat(float x) { return _mm512_set1_ps(x); }

// e^x for x <= 0 and not far above it: x = n ln 2 + r, a polynomial of r (relative error below 2e-7).
inline __attribute__((always_inline)) __m512 exp_of(__m512 x) {
  x = _mm512_max_ps(x, splat(-104.0F));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, splat(1.44269504F)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, splat(0.693359375F), x);
  r = _mm512_fnmadd_ps(n, splat(-2.12194440e-4F), r);
  __m512 p = splat(1.0F / 720);
  p = _mm512_fmadd_ps(p, r, splat(1.0F / 120));
  p = _mm512_fmadd_ps(p, r, splat(1.0F / 24));
  p = _mm512_fmadd_ps(p, r, splat(1.0F / 6));
  p = _mm512_fmadd_ps(p, r, splat(0.5F));
  p = _mm512_fmadd_ps(p, r, splat(1.0F));
  p = _mm512_fmadd_ps(p, r, splat(1.0F));
  return _mm512_scalef_ps(p, n);
}

void quantise(const float* x, const float* pre, int64_t rows, int64_t inputs, uint8_t* q, float* scale,
              float* least) {
  const int64_t groups = inputs / kGroup;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const float* const from = x + row * inputs + g * kGroup;
      __m512 v[4];
      for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_mul_ps(_mm512_loadu_ps(from + 16 * i), _mm512_loadu_ps(pre + g * kGroup + 16 * i));
      }
      const __m512 low = _mm512_min_ps(_mm512_min_ps(v[0], v[1]), _mm512_min_ps(v[2], v[3]));
      const __m512 high = _mm512_max_ps(_mm512_max_ps(v[0], v[1]), _mm512_max_ps(v[2], v[3]));
      const float lowest = _mm512_reduce_min_ps(low), spread = _mm512_reduce_max_ps(high) - lowest;
      const float inverse = spread > 0 ? 255.0F / spread : 0.0F;
      for (int i = 0; i < 4; ++i) {
        const __m512 t = _mm512_mul_ps(_mm512_sub_ps(v[i], splat(lowest)), splat(inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + row * inputs + g * kGroup + 16 * i),
                         _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(t)));
      }
      scale[row * groups + g] = spread / 255.0F;
      least[row * groups + g] = lowest;
    }
  }
}

template <int kRows>
inline __attribute__((always_inline)) void tile(const uint8_t* q, const float* scale, const float* least,
                                                int64_t inputs, const int8_t* weight,
                                                const float* weight_scale, const float* weight_sum,
                                                const float* bias, int64_t width, float* y, int64_t stride) {
  const int64_t groups = inputs / kGroup;
  __m512 sum[kRows][3];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < 3; ++c) sum[r][c] = _mm512_loadu_ps(bias + 16 * c);
  }
  for (int64_t g = 0; g < groups; ++g) {
    __m512i dot[kRows][3];
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < 3; ++c) dot[r][c] = _mm512_setzero_si512();
    }
#pragma GCC unroll 4
    for (int step = 0; step < 16; ++step) {
      const int8_t* const w = weight + (g * 16 + step) * kPanel * 4;
      const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64),
                    w2 = _mm512_loadu_si512(w + 128);
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, q + r * inputs + g * kGroup + 4 * step, 4);
        const __m512i a = _mm512_set1_epi32(four);
        dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], a, w0);
        dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], a, w1);
        dot[r][2] = _mm512_dpbusd_epi32(dot[r][2], a, w2);
      }
    }
    for (int c = 0; c < 3; ++c) {
      const __m512 ws = _mm512_loadu_ps(weight_scale + g * kPanel + 16 * c);
      const __m512 wt = _mm512_loadu_ps(weight_sum + g * kPanel + 16 * c);
      for (int r = 0; r < kRows; ++r) {
        const __m512 both = _mm512_mul_ps(ws, splat(scale[r * groups + g]));
        sum[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][c]), both, sum[r][c]);
        sum[r][c] = _mm512_fmadd_ps(splat(least[r * groups + g]), wt, sum[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; 16 * c < width; ++c) _mm512_storeu_ps(y + r * stride + 16 * c, sum[r][c]);
  }
}

void multiply(const uint8_t* q, const float* scale, const float* least, int64_t rows, int64_t inputs,
              const int8_t* weight, const float* weight_scale, const float* weight_sum, const float* bias,
              int64_t width, float* y, int64_t stride) {
  const int64_t groups = inputs / kGroup;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    tile<4>(q + row * inputs, scale + row * groups, least + row * groups, inputs, weight, weight_scale,
            weight_sum, bias, width, y + row * stride, stride);
  }
  for (; row < rows; ++row) {
    tile<1>(q + row * inputs, scale + row * groups, least + row * groups, inputs, weight, weight_scale,
            weight_sum, bias, width, y + row * stride, stride);
  }
}

void add_norm(float* x, const float* y, int64_t rows, int64_t width, const float* gamma, const float* beta,
              float epsilon) {
  for (int64_t row = 0; row < rows; ++row) {
    float* const at = x + row * width;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
      __m512 v = _mm512_loadu_ps(at + i);
      if (y != nullptr) {
        v = _mm512_add_ps(v, _mm512_loadu_ps(y + row * width + i));
        _mm512_storeu_ps(at + i, v);
      }
      sum = _mm512_add_ps(sum, v);
    }
    const __m512 mean = splat(_mm512_reduce_add_ps(sum) / static_cast<float>(width));
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
      const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(at + i), mean);
      squares = _mm512_fmadd_ps(d, d, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    const __m512 inverse = splat(1.0F / __builtin_sqrtf(variance + epsilon));
    for (int64_t i = 0; i < width; i += 16) {
      const __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(at + i), mean), inverse);
      _mm512_storeu_ps(at + i, _mm512_fmadd_ps(d, _mm512_loadu_ps(gamma + i), _mm512_loadu_ps(beta + i)));
    }
  }
}

// erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
void gelu(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(v), splat(0.70710678F));
    const __m512 t = _mm512_div_ps(splat(1.0F), _mm512_fmadd_ps(z, splat(0.3275911F), splat(1.0F)));
    __m512 p = splat(1.061405429F);
    p = _mm512_fmadd_ps(p, t, splat(-1.453152027F));
    p = _mm512_fmadd_ps(p, t, splat(1.421413741F));
    p = _mm512_fmadd_ps(p, t, splat(-0.284496736F));
    p = _mm512_fmadd_ps(p, t, splat(0.254829592F));
    p = _mm512_mul_ps(p, t);
    const __m512 tail = _mm512_mul_ps(p, exp_of(_mm512_fnmadd_ps(z, z, _mm512_setzero_ps())));  // 1 - erf(z)
    // v Phi(v): v (1 - tail / 2) above 0, v tail / 2 below.
    const __m512 half = _mm512_mul_ps(splat(0.5F), tail);
    const __mmask16 below = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 share = _mm512_mask_blend_ps(below, _mm512_sub_ps(splat(1.0F), half), half);
    _mm512_storeu_ps(x + i, _mm512_mul_ps(v, share));
  }
}

// Scores of kQueries queries of one head over all keys (transposed: keys [width, padded]), to shares in `out`.
template <int kQueries>
inline __attribute__((always_inline)) void shares(const float* queries, int64_t stride, const float* keys,
                                                  int64_t tokens, int64_t padded, int64_t width, float* out) {
  const __m512 factor = splat(1.0F / __builtin_sqrtf(static_cast<float>(width)));
  const __m512 lowest = splat(-__builtin_inff());
  __m512 most[kQueries], total[kQueries];
  for (int r = 0; r < kQueries; ++r) most[r] = lowest, total[r] = _mm512_setzero_ps();
  for (int64_t j = 0; j < padded; j += 16) {
    __m512 score[kQueries];
    for (int r = 0; r < kQueries; ++r) score[r] = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; ++d) {
      const __m512 key = _mm512_loadu_ps(keys + d * padded + j);
      for (int r = 0; r < kQueries; ++r)
        score[r] = _mm512_fmadd_ps(splat(queries[r * stride + d]), key, score[r]);
    }
    const int64_t left = tokens - j;
    const auto real = static_cast<__mmask16>(left >= 16 ? 0xffff : (1U << left) - 1);
    for (int r = 0; r < kQueries; ++r) {
      const __m512 s = _mm512_mask_mul_ps(lowest, real, score[r], factor);
      most[r] = _mm512_max_ps(most[r], s);
      _mm512_storeu_ps(out + r * padded + j, s);
    }
  }
  for (int r = 0; r < kQueries; ++r) {
    const __m512 top = splat(_mm512_reduce_max_ps(most[r]));
    for (int64_t j = 0; j < padded; j += 16) {
      const __m512 s = _mm512_loadu_ps(out + r * padded + j);
      const __mmask16 real = _mm512_cmp_ps_mask(s, lowest, _CMP_GT_OQ);
      const __m512 e = _mm512_maskz_mov_ps(real, exp_of(_mm512_sub_ps(s, top)));
      total[r] = _mm512_add_ps(total[r], e);
      _mm512_storeu_ps(out + r * padded + j, e);
    }
    const __m512 inverse = splat(1.0F / _mm512_reduce_add_ps(total[r]));
    for (int64_t j = 0; j < padded; j += 16) {
      _mm512_storeu_ps(out + r * padded + j, _mm512_mul_ps(_mm512_loadu_ps(out + r * padded + j), inverse));
    }
  }
}

template <int kQueries>
inline __attribute__((always_inline)) void attend(const float* qkv, const float* keys, int64_t query,
                                                  int64_t head, int64_t tokens, int64_t heads, int64_t width,
                                                  float* out, float* scratch) {
  const int64_t hidden = heads * width, stride = 3 * hidden, padded = (tokens + 15) / 16 * 16;
  shares<kQueries>(qkv + query * stride + head * width, stride, keys, tokens, padded, width, scratch);
  for (int64_t d = 0; d < width; d += 16) {
    const float* const values = qkv + 2 * hidden + head * width + d;
    __m512 sum[kQueries];
    for (int r = 0; r < kQueries; ++r) sum[r] = _mm512_setzero_ps();
    for (int64_t j = 0; j < tokens; ++j) {
      const __m512 v = _mm512_loadu_ps(values + j * stride);
      for (int r = 0; r < kQueries; ++r) sum[r] = _mm512_fmadd_ps(splat(scratch[r * padded + j]), v, sum[r]);
    }
    for (int r = 0; r < kQueries; ++r)
      _mm512_storeu_ps(out + (query + r) * hidden + head * width + d, sum[r]);
  }
}

void attention(const float* qkv, int64_t tokens, int64_t heads, int64_t width, float* out, float* scratch) {
  const int64_t hidden = heads * width, stride = 3 * hidden, padded = (tokens + 15) / 16 * 16;
  float* const keys = scratch;
  float* const rows = scratch + width * padded;
  for (int64_t head = 0; head < heads; ++head) {
    const float* const from = qkv + hidden + head * width;
    for (int64_t d = 0; d < width; ++d) {
      for (int64_t j = 0; j < tokens; ++j) keys[d * padded + j] = from[j * stride + d];
      for (int64_t j = tokens; j < padded; ++j) keys[d * padded + j] = 0;
    }
    int64_t query = 0;
    for (; query + 4 <= tokens; query += 4)
      attend<4>(qkv, keys, query, head, tokens, heads, width, out, rows);
    for (; query < tokens; ++query) attend<1>(qkv, keys, query, head, tokens, heads, width, out, rows);
  }
}

void unit_mean(const float* x, int64_t tokens, int64_t width, float* out) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < tokens; ++j) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + j * width + i));
    sum = _mm512_div_ps(sum, splat(static_cast<float>(tokens)));
    squares = _mm512_fmadd_ps(sum, sum, squares);
    _mm512_storeu_ps(out + i, sum);
  }
  const float norm = __builtin_sqrtf(_mm512_reduce_add_ps(squares));
  const __m512 divisor = splat(norm > 1e-12F ? norm : 1e-12F);
  for (int64_t i = 0; i < width; i += 16)
    _mm512_storeu_ps(out + i, _mm512_div_ps(_mm512_loadu_ps(out + i), divisor));
}

}  // namespace

const Int8Kernels kInt8KernelsAvx512Vnni = {quantise, multiply, add_norm, gelu, attention, unit_mean};

}  // namespace obverse
