// Groups of duplicates: connected components, and which rows of a group stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "obverse/span.hpp"

namespace obverse {

/// Disjoint sets of 0 .. n - 1 (union by lower root, path halving).
class DisjointSets {
 public:
  explicit DisjointSets(size_t n = 0) : parent_(n) { std::iota(parent_.begin(), parent_.end(), 0U); }
  uint32_t find(uint32_t x) {
    while (parent_[x] != x) x = parent_[x] = parent_[parent_[x]];
    return x;
  }
  /// The root is always the lowest member.
  void join(uint32_t x, uint32_t y) {
    x = find(x);
    y = find(y);
    if (x < y) std::swap(x, y);
    parent_[x] = y;
  }
  uint32_t root(uint32_t x) const {
    while (parent_[x] != x) x = parent_[x];
    return x;
  }

 private:
  std::vector<uint32_t> parent_;
};

/// What is known of every row of a set, one entry a row.
struct DuplicateGroups {
  std::vector<int64_t> group;  // the lowest row of its connected component, its own where it is alone
  std::vector<uint8_t> kept;   // 1 or 0
  std::vector<int64_t>
      duplicate_of;  // the first row by priority that stays and is within the threshold; -1: stays
  std::vector<float> similarity;  // to duplicate_of; 1 where the row stays
};

/// Throws ValueError unless order is a permutation of 0 .. n - 1 (an empty one stands for row order), or n is too
/// large for 32 bits.
void check_order(int64_t n, span<const int64_t> order);

/// For each of n rows of `row_bytes` bytes: the first row, by `order`, with the same bytes.
std::vector<int64_t> first_equal_rows(span<const uint8_t> bytes, int64_t n, int64_t row_bytes,
                                      span<const int64_t> order, int threads);

/// Pairs (i, j) of rows at or above a threshold, with their similarities.
struct RowPairs {
  span<const int64_t> i, j;
  span<const float> similarity;
};

/// Groups and the rows that stay, from all pairs within the threshold. `order`: rows by falling priority, or empty.
/// `first`: as first_equal_rows gives it, where pairs are of first rows only; empty where they are of all rows.
/// A row stays unless an earlier row that stays is its pair. 24 bytes a pair, 24 a row, beside the result.
DuplicateGroups group_pairs(int64_t n, const RowPairs& pairs, span<const int64_t> order,
                            span<const int64_t> first);

}  // namespace obverse
