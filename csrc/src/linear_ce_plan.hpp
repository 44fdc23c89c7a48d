// How a call of linear_ce is cut into chunks of rows and blocks of the vocabulary.
#pragma once

#include <cstdint>

#include "linear_ce_kernels.hpp"
#include "obverse/linear_ce.hpp"

namespace obverse {

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

/// How the work is cut, and what it takes. Sizes are in cells of four bytes unless they say bytes.
struct LinearCePlan {
  LinearCeKernels kernels;
  int threads = 1;
  bool train = false;  // any gradient is wanted
  int64_t block = 0, blocks = 0;
  int64_t rows = 0;                   // a chunk's, whole panels
  int64_t deep = 0, deep_panels = 0;  // cells of D along a row; panels of D across
  int64_t kept_bytes = 0;

  int64_t cells(int64_t n) const { return kernels.pairs ? ceil_div(n, 2) : n; }
  int64_t packed(int64_t n) const { return deep_panels * cells(n) * kernels.panel; }
};

/// A call of linear_ce.
struct LinearCeCall {
  const LinearCe& problem;
  const CeInputs& in;
  const CeRule& rule;
  const CeUpstream& upstream;
  const CeOutputs& out;
  const LinearCeGradients& gradients;

  int64_t n() const { return problem.hidden.rows; }
  int64_t vocab() const { return problem.head.rows; }
  int64_t depth() const { return problem.head.columns; }
  bool bfloat16() const { return problem.hidden.dtype == CeDtype::kBfloat16; }
  int64_t element() const { return bfloat16() ? 2 : 4; }
};

/// The plan for `counted` rows that are not ignored.
LinearCePlan make_linear_ce_plan(const LinearCeCall& call, const CeRun& run, int64_t counted);

}  // namespace obverse
