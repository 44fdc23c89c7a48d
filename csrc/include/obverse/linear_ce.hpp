// Linear layer and weighted cross-entropy as one: loss and gradients of softmax(hidden head^T + bias) without
// ever holding the [N, V] logits. Three matrix products: weights are known once a row's logits are.
#pragma once

#include "obverse/weighted_ce.hpp"

namespace obverse {

struct LinearCe {
  CeMatrix hidden;             // [N, D] float32 or bfloat16
  CeMatrix head;               // [V, D], the hidden's dtype
  const void* bias = nullptr;  // [V], the hidden's dtype, or null
  int64_t rows_a_chunk = 0;    // whose logits are held at once; 0: as many as a quarter of all logits takes
};

/// Any may be null; gradients come in the hidden's dtype, rows contiguous. Sums are float32, but for a bfloat16
/// head's over chunks of rows: these have twelve bits until the last chunk, against bfloat16's eight.
struct LinearCeGradients {
  void* hidden = nullptr;  // [N, D]
  void* head = nullptr;    // [V, D]
  void* bias = nullptr;    // [V]
};

/// Whether the fused path has a fast kernel for this dtype here (bfloat16 needs AVX-512 BF16 to beat a library).
bool linear_ce_is_fast(CeDtype dtype, Isa isa);

/// Fills `out` (as ce_forward) and the gradients asked for, each row's loss scaled by `upstream`.
/// With every gradient null: one matrix product, loss only. No soft targets. Rows at ignore_index cost no products.
/// The same call gives the same bits, whatever the timing; another number of threads changes the last ones.
void linear_ce(const LinearCe& problem, const CeInputs& in, const CeRule& rule, const CeUpstream& upstream,
               const CeOutputs& out, const LinearCeGradients& gradients, const CeRun& run);

}  // namespace obverse
