// Bounded neighbour lists that several threads fill: the k greatest by (cosine, -row) of all that is ever offered.
#pragma once

#include <cstdint>
#include <vector>

#include "exact_join_scan.hpp"
#include "obverse/exact_join.hpp"

namespace obverse {

class NeighbourLists : public PairSink {
 public:
  NeighbourLists(const JoinProblem& problem, int64_t k);

  int64_t k() const { return k_; }
  span<int32_t> indices() { return indices_; }
  span<float> similarities() { return similarities_; }
  /// The k-th cosine of a row so far, -infinity while its list is not full; it only rises.
  float threshold(int32_t row) const;
  /// Offers candidates [N, m] of these rows to their own lists; those that are not of `columns` (self: of `rows`) are
  /// left out.
  void fill(span<const int32_t> rows, span<const int32_t> columns, span<const int32_t> candidates, int64_t m,
            JoinCounts& counts);

  void floors(const int32_t* rows, int64_t count, bool column, float* floors) const override;
  void take(span<const FoundPair> pairs, JoinCounts& counts) override;

 private:
  void insert(int32_t row, int32_t id, float similarity);

  const JoinProblem& problem_;
  int64_t k_;
  ExactCosine cosine_;
  std::vector<int32_t> indices_;
  std::vector<float> similarities_;
  std::vector<uint8_t> locks_;
};

}  // namespace obverse
