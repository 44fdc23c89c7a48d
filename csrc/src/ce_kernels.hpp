// The weighted cross-entropy's kernels, once for every instruction set, as tables of function pointers.
#pragma once

#include "obverse/weighted_ce.hpp"

namespace obverse {

/// A whole call as the kernels see it; each works on a range of its rows.
struct CeJob {
  CeMatrix logits;
  CeInputs in;
  CeRule rule;
  float class_total = 0.0F;  // C: the sum of the class weights, V if there are none
  CeOutputs out;
  const float* fields = nullptr;  // backward: [kCeFields, N] as ce_forward left it
  CeUpstream upstream;
  void* gradient = nullptr;
  int64_t gradient_stride = 0;
  bool stream = false;  // the gradient is too large for the caches: write it past them
};

/// What a row's sweep knows, one value a row (the arrays start at the call's first row).
struct CeRowSums {
  const float* top = nullptr;     // the row's maximum
  const float* others = nullptr;  // sum over j != y of exp(z_j - top)
  const float* z_y = nullptr;     // the target's logit; anything in rows without a target
  const float* spread = nullptr;  // sum of c_j (z_j - z_y) over c_j != 0; may be null if the smoothing is 0
};

struct CeKernels {
  /// Rows [first, last) of the job. `scratch`: ce_scratch_floats(columns) floats of this thread's own.
  void (*forward)(const CeJob& job, int64_t first, int64_t last, float* scratch);
  void (*backward)(const CeJob& job, int64_t first, int64_t last, float* scratch);
  void (*fused)(const CeJob& job, int64_t first, int64_t last, float* scratch);
  /// Fills the fields of rows [first, last) from their sums (hard targets). Of the job it reads in, rule,
  /// class_total, out, logits.rows (the fields' stride) and logits.columns.
  void (*finish)(const CeJob& job, const CeRowSums& sums, int64_t first, int64_t last);
};

// Always inlined: a shared copy of one of these could have been compiled for AVX-512.

/// Columns swept at once: their logits and exponentials stay in the first cache.
constexpr int64_t kCeBlock = 4096;
/// Rows finished together where they are short.
constexpr int64_t kCeGroup = 16;

__attribute__((always_inline)) constexpr int64_t ce_blocks(int64_t columns) {
  return (columns + kCeBlock - 1) / kCeBlock;
}
__attribute__((always_inline)) constexpr int64_t ce_group(int64_t columns) {
  return columns <= 2048 ? kCeGroup : 1;
}
/// Floats of scratch a row takes: its exponentials, whole vectors of them, and a base a block at the end.
__attribute__((always_inline)) constexpr int64_t ce_pitch(int64_t columns) {
  return (columns + 16 + ce_blocks(columns) + 15) / 16 * 16;
}

/// Floats of scratch a thread needs for rows of so many columns.
__attribute__((always_inline)) constexpr int64_t ce_scratch_floats(int64_t columns) {
  return ce_group(columns) * ce_pitch(columns);
}

/// The kernels of the best instruction set here that is not above `bound`.
const CeKernels& ce_kernels(Isa bound);

extern const CeKernels kCeKernelsPortable;
extern const CeKernels kCeKernelsAvx2;
extern const CeKernels kCeKernelsAvx512;
extern const CeKernels kCeKernelsAvx512Bf16;

}  // namespace obverse
