#include "obverse/groups.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "obverse/random.hpp"
#include "parallel.hpp"

namespace obverse {
namespace {

constexpr uint32_t kNone = 0xFFFFFFFFU;

uint64_t hash_row(const uint8_t* bytes, int64_t count) {
  uint64_t h = static_cast<uint64_t>(count);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + i, 8);
    h = (h ^ word) * 0x9E3779B97F4A7C15ULL;
    h ^= h >> 32;
  }
  uint64_t rest = 0;
  std::memcpy(&rest, bytes + i, static_cast<size_t>(count - i));
  return mix64(h ^ rest);
}

/// Places in the order, by row.
std::vector<uint32_t> ranks(int64_t n, span<const int64_t> order) {
  std::vector<uint32_t> rank(static_cast<size_t>(n));
  for (size_t r = 0; r < rank.size(); ++r) {
    rank[order.empty() ? r : static_cast<size_t>(order[r])] = static_cast<uint32_t>(r);
  }
  return rank;
}

struct RankedPair {
  uint32_t later, earlier;
  float similarity;
  bool operator<(const RankedPair& other) const {
    return std::tie(later, earlier) < std::tie(other.later, other.earlier);
  }
};

std::vector<RankedPair> ranked(const RowPairs& pairs, const std::vector<uint32_t>& rank) {
  const auto n = static_cast<int64_t>(rank.size());
  std::vector<RankedPair> result;
  result.reserve(pairs.i.size());
  for (size_t p = 0; p < pairs.i.size(); ++p) {
    const int64_t i = pairs.i[p], j = pairs.j[p];
    require(i >= 0 && i < n && j >= 0 && j < n && i != j, "pair ", p, " must name two of ", n, " rows, got ",
            i, " and ", j);
    const uint32_t a = rank[static_cast<size_t>(i)], b = rank[static_cast<size_t>(j)];
    result.push_back({std::max(a, b), std::min(a, b), pairs.similarity[p]});
  }
  std::sort(result.begin(), result.end());
  return result;
}

}  // namespace

void check_order(int64_t n, span<const int64_t> order) {
  require(n >= 0 && n < int64_t{kNone}, "rows must be fewer than 2^32 - 1, got ", n);
  if (order.empty()) return;
  require(static_cast<int64_t>(order.size()) == n, "order must name each of ", n, " rows once, got length ",
          order.size());
  std::vector<bool> seen(order.size());
  for (size_t r = 0; r < order.size(); ++r) {
    require(order[r] >= 0 && order[r] < n && !seen[static_cast<size_t>(order[r])], "order must name each of ",
            n, " rows once, got order[", r, "] = ", order[r]);
    seen[static_cast<size_t>(order[r])] = true;
  }
}

std::vector<int64_t> first_equal_rows(span<const uint8_t> bytes, int64_t n, int64_t row_bytes,
                                      span<const int64_t> order, int threads) {
  check_order(n, order);
  require(row_bytes >= 0 && static_cast<int64_t>(bytes.size()) == n * row_bytes, "bytes must have length ",
          n * row_bytes, ", got ", bytes.size());
  std::vector<uint64_t> hashes(static_cast<size_t>(n));
  parallel_for(threads, n, 4096, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r)
      hashes[static_cast<size_t>(r)] = hash_row(bytes.data() + r * row_bytes, row_bytes);
  });
  size_t capacity = 64;
  while (capacity < 2 * hashes.size()) capacity *= 2;
  std::vector<uint32_t> slots(capacity, kNone);
  std::vector<int64_t> result(hashes.size());
  for (size_t place = 0; place < hashes.size(); ++place) {
    const size_t row = order.empty() ? place : static_cast<size_t>(order[place]);
    for (size_t s = hashes[row] & (capacity - 1);; s = (s + 1) & (capacity - 1)) {
      const uint32_t held = slots[s];
      if (held == kNone) slots[s] = static_cast<uint32_t>(row);
      if (held == kNone ||
          (hashes[held] == hashes[row] && std::memcmp(bytes.data() + int64_t{held} * row_bytes,
                                                      bytes.data() + static_cast<int64_t>(row) * row_bytes,
                                                      static_cast<size_t>(row_bytes)) == 0)) {
        result[row] = slots[s];
        break;
      }
    }
  }
  return result;
}

DuplicateGroups group_pairs(int64_t n, const RowPairs& pairs, span<const int64_t> order,
                            span<const int64_t> first) {
  check_order(n, order);
  const auto size = static_cast<size_t>(n);
  require(first.empty() || first.size() == size, "first must have length ", n, ", got ", first.size());
  require(pairs.i.size() == pairs.j.size() && pairs.i.size() == pairs.similarity.size(),
          "pairs must have as many i as j and similarities, got ", pairs.i.size(), ", ", pairs.j.size(),
          " and ", pairs.similarity.size());
  const std::vector<uint32_t> rank = ranks(n, order);
  const auto row_at = [&](uint32_t r) { return order.empty() ? int64_t{r} : order[r]; };
  DuplicateGroups result{std::vector<int64_t>(size), std::vector<uint8_t>(size, 1),
                         std::vector<int64_t>(size, -1), std::vector<float>(size, 1.0F)};
  DisjointSets sets(size);
  // By the later row, so that every earlier row's fate is known; within it the earliest comes first.
  for (const RankedPair& pair : ranked(pairs, rank)) {
    const auto later = static_cast<size_t>(row_at(pair.later)),
               earlier = static_cast<size_t>(row_at(pair.earlier));
    sets.join(static_cast<uint32_t>(later), static_cast<uint32_t>(earlier));
    if (result.kept[later] == 0 || result.kept[earlier] == 0) continue;
    result.kept[later] = 0;
    result.duplicate_of[later] = static_cast<int64_t>(earlier);
    result.similarity[later] = pair.similarity;
  }
  for (size_t row = 0; row < first.size(); ++row) {
    const int64_t held = first[row];
    require(held >= 0 && held < n, "first[", row, "] must be a row, got ", held);
    if (held == static_cast<int64_t>(row)) continue;
    const auto at = static_cast<size_t>(held);
    sets.join(static_cast<uint32_t>(row), static_cast<uint32_t>(held));
    result.kept[row] = 0;
    result.duplicate_of[row] = result.kept[at] != 0 ? held : result.duplicate_of[at];
    result.similarity[row] = result.similarity[at];
  }
  for (size_t row = 0; row < size; ++row) result.group[row] = sets.find(static_cast<uint32_t>(row));
  return result;
}

}  // namespace obverse
