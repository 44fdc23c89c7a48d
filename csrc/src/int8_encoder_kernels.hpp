// The kernels of the 8-bit encoder, as a table of function pointers.
#pragma once

#include <cstdint>

namespace obverse {

struct Int8Kernels {
  /// Tokens x [rows, inputs] times pre, rounded: q = round((x - least) / scale) in each group of 64.
  void (*quantise)(const float* x, const float* pre, int64_t rows, int64_t inputs, uint8_t* q, float* scale,
                   float* least);
  /// y [rows, stride] = q W + bias for one panel of 48 outputs, of which the first `width` (a multiple of 16) are kept.
  void (*multiply)(const uint8_t* q, const float* scale, const float* least, int64_t rows, int64_t inputs,
                   const int8_t* weight, const float* weight_scale, const float* weight_sum,
                   const float* bias, int64_t width, float* y, int64_t stride);
  /// x = layer_norm(x + y) gamma + beta, over rows [rows, width]; y may be null.
  void (*add_norm)(float* x, const float* y, int64_t rows, int64_t width, const float* gamma,
                   const float* beta, float epsilon);
  /// x = x Phi(x), n values (a multiple of 16).
  void (*gelu)(float* x, int64_t n);
  /// One text's attention: qkv [tokens, 3 heads width] to out [tokens, heads width]. `scratch` holds
  /// (width + 4) * (tokens rounded up to 16) floats.
  void (*attention)(const float* qkv, int64_t tokens, int64_t heads, int64_t width, float* out,
                    float* scratch);
  /// out [width] = mean of rows [tokens, width], over its norm.
  void (*unit_mean)(const float* x, int64_t tokens, int64_t width, float* out);
};

extern const Int8Kernels kInt8KernelsAvx512Vnni;

}  // namespace obverse
