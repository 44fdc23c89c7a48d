// A cheap start for the top-k join: candidates whose k-th cosine is not far below the true one.
#pragma once

#include <cstdint>
#include <vector>

#include "obverse/exact_join.hpp"

namespace obverse {

struct TreeStart {
  int64_t trees = 3;
  int64_t rounds = 1;  // of neighbours of neighbours (self-joins only)
  uint64_t seed = 0;
  int64_t kept = 10;  // candidates a row
};

/// [N of x, kept]: for each of `rows` the best by int8 inner product among the columns that random hyperplane trees
/// put into one leaf with it, -1 where there are fewer. The same for any number of threads.
std::vector<int32_t> tree_candidates(const JoinProblem& problem, span<const int32_t> rows,
                                     span<const int32_t> columns, const TreeStart& start);

}  // namespace obverse
