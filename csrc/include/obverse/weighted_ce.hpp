// Weighted cross-entropy of rows of logits: forward, backward, and both in one pass over memory.
//
// With p = softmax(z), lse = log sum exp(z), c the class weights (1 if none), e the label smoothing, zl the
// z-loss, and t the target (one-hot at y, or a soft row):
//
//   tau_j = c_j ((1 - e) t_j + e / V)     T = sum_j tau_j     lp = sum_j t_j log p_j  (hard: log p_y)
//   l     = T lse - sum_j tau_j z_j + zl lse^2
//   loss  = w l        w = s | s exp(clip(gamma (log q - log d))) | s exp(clip(gamma (log q - lp))) | s (1 - p_y)^gamma
//
// w is a constant to the gradient, but for the true focal loss, whose extra term is F. With upstream gradient g:
//
//   d/dz_j = g (a p_j - b c_j)  for j != y      a = w (T + 2 zl lse) + F      b = w e / V
//   d/dz_y = g t                                t = w e (C - c_y) / V + 2 w zl lse p_y - (w T + F) (1 - p_y)
//   F = gamma s (1 - p_y)^(gamma - 1) p_y l     C = sum_j c_j
//   soft targets: d/dz_j = g (a p_j - w tau_j)
//
// 1 - p_y is the sum over the other classes over the whole sum: 1 - p has no digits left once p is near 1.
// All arithmetic is float32 (sums over a row may be wider), whatever the logits' dtype.
#pragma once

#include <cstddef>
#include <cstdint>

namespace obverse {

enum class CeDtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
enum class CeScheme : int32_t { kPlain = 0, kSampleWeight = 1, kImp = 2, kDimp = 3, kFocal = 4 };

/// What the kernels may use. A caller may lower it, never raise it: `best_isa()` bounds it.
enum class Isa : int32_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

/// The best instruction set that this processor and operating system run.
Isa best_isa();

struct CeRule {
  CeScheme scheme = CeScheme::kPlain;
  bool focal_detached = false;
  float gamma = 1.0F;
  float log_low = -64.0F;  // bounds of gamma times the log ratio
  float log_high = 64.0F;
  float smoothing = 0.0F;  // e
  float z_loss = 0.0F;     // zl
  int64_t ignore_index = -100;
};

/// A matrix whose columns are contiguous; rows lie `row_stride` elements apart (0 or more).
struct CeMatrix {
  const void* data = nullptr;
  CeDtype dtype = CeDtype::kFloat32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
};

/// One value a row, but for the class weights. Null where the rule has no use for it (or, sample_weight, for 1).
struct CeInputs {
  const int64_t* target = nullptr;  // [N] in [0, V) or ignore_index; any other value leaves no target column
  const float* sample_weight = nullptr;  // [N]
  const float* log_quality = nullptr;    // [N]
  const float* log_diversity = nullptr;  // [N]
  const float* class_weight = nullptr;   // [V]
  CeMatrix soft_target;                  // data != null: [N, V], and `target` is null
};

/// float32 [kCeFields, N], each field contiguous. An ignored row has 0 in the first four.
/// A target outside [0, V) that is not ignore_index makes the row's loss, weight and log_prob NaN (its a and t too).
enum CeField : int { kLoss, kWeight, kLogProb, kLse, kTop, kLogSum, kA, kT, kW, kCeFields };
// kWeight is what counts in a normalised mean: w c_y (soft: w sum_j c_j t_j); kW is w itself.
// kTop is the row's maximum and kLogSum = lse - top: large logits would leave no room for its digits in one number.

struct CeOutputs {
  float* fields = nullptr;    // [kCeFields, N]
  int8_t* clipped = nullptr;  // [N]: -1 raised to the lower bound, 1 lowered to the upper, else 0
};

/// One gradient a row: data[i * stride]; stride 0 gives all rows the same.
struct CeUpstream {
  const float* data = nullptr;
  int64_t stride = 0;
};

struct CeRun {
  int threads = 1;
  Isa isa = Isa::kAvx512Bf16;  // an upper bound
};

/// Fills `out`. Reads each row once.
void ce_forward(const CeMatrix& logits, const CeInputs& in, const CeRule& rule, const CeOutputs& out,
                const CeRun& run);

/// gradient [N, V] (the logits' dtype, `gradient_stride` elements between rows; may be the logits' own memory)
/// from the `fields` that ce_forward left.
void ce_backward(const CeMatrix& logits, const CeInputs& in, const CeRule& rule, const float* fields,
                 const CeUpstream& upstream, void* gradient, int64_t gradient_stride, const CeRun& run);

/// ce_forward and ce_backward with a row's logits read from memory once, its exponentials taken once and its
/// gradient written once. `gradient` may be the logits' own memory.
void ce_fused(const CeMatrix& logits, const CeInputs& in, const CeRule& rule, const CeUpstream& upstream,
              const CeOutputs& out, void* gradient, int64_t gradient_stride, const CeRun& run);

/// How many of `rows` targets are not ignore_index.
int64_t ce_count(const int64_t* target, int64_t rows, int64_t ignore_index);

/// The sum of `count` figures in double, in one order whatever the compiler.
double ce_sum(const float* figures, int64_t count);

}  // namespace obverse
