// The kernels over vectors, once for every instruction set, as tables of function pointers.
#pragma once

#include "obverse/quantised.hpp"

namespace obverse {

/// Rows rotated at once.
constexpr int64_t kRotateRows = 32;

struct VectorKernels {
  /// Inner product of two rows of `columns` values in double, in the order that quantised.hpp fixes.
  double (*dot_float)(const void* x, const void* z, int64_t columns);
  double (*dot_half)(const void* x, const void* z, int64_t columns);
  /// out [kRotateRows, columns] = rows of x, each over its norm, rounded to float.
  void (*unit_float)(const void* x, const double* norms, int64_t columns, float* out);
  void (*unit_half)(const void* x, const double* norms, int64_t columns, float* out);
  /// out [kRotateRows, width] = unit [kRotateRows, columns] times matrix [columns, width]; sums of at most 64
  /// products each are added to the result, so that rounding grows with 64 + columns / 64, not with columns.
  void (*rotate)(const float* unit, const float* matrix, int64_t columns, int64_t width, float* out);
  /// q = round(y / scale) clipped to [-127, 127]; returns |y - scale q|^2.
  double (*quantise)(const float* y, int64_t width, double scale, int8_t* q);
};

/// The kernels of the best instruction set here that is not above `bound`.
const VectorKernels& vector_kernels(VectorIsa bound);

extern const VectorKernels kVectorKernelsPortable;
extern const VectorKernels kVectorKernelsAvx2;
extern const VectorKernels kVectorKernelsAvx512Vnni;

}  // namespace obverse
