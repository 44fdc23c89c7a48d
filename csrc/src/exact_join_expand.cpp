// From lists among distinct rows to lists among all rows: equal rows are each other's neighbours, and have one list.
#include <algorithm>
#include <limits>
#include <vector>

#include "obverse/exact_join.hpp"
#include "parallel.hpp"

namespace obverse {
namespace {

/// Members of every group of equal rows, by rising row number: members[starts[g] .. starts[g + 1]).
struct Groups {
  std::vector<int64_t> starts;
  std::vector<int32_t> members, number;  // number[first row]: the group's place
};

Groups groups_of(span<const int64_t> first) {
  Groups groups;
  const auto n = static_cast<int64_t>(first.size());
  groups.number.assign(first.size(), -1);
  groups.starts.push_back(0);
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (first[static_cast<size_t>(i)] == i) groups.number[static_cast<size_t>(i)] = count++;
  }
  groups.starts.assign(static_cast<size_t>(count) + 1, 0);
  const auto place = [&](int64_t i) {
    return static_cast<size_t>(groups.number[static_cast<size_t>(first[static_cast<size_t>(i)])]);
  };
  for (int64_t i = 0; i < n; ++i) ++groups.starts[place(i) + 1];
  for (size_t g = 1; g < groups.starts.size(); ++g) groups.starts[g] += groups.starts[g - 1];
  groups.members.resize(first.size());
  std::vector<int64_t> next(groups.starts.begin(), groups.starts.end() - 1);
  for (int64_t i = 0; i < n; ++i)
    groups.members[static_cast<size_t>(next[place(i)]++)] = static_cast<int32_t>(i);
  return groups;
}

struct Entry {
  float similarity;
  int32_t row;
  bool operator<(const Entry& other) const {
    return similarity != other.similarity ? similarity > other.similarity : row < other.row;
  }
};

}  // namespace

void expand_equal_rows(const EqualRows& x, const EqualRows& y, bool self, span<const int32_t> lists,
                       span<const float> values, int64_t listed, int64_t k, int64_t* indices,
                       float* similarities, int threads) {
  const Groups groups = groups_of(y.first);
  const auto n = static_cast<int64_t>(x.first.size());
  parallel_for(threads, n, 512, [&](int64_t begin, int64_t end, int) {
    std::vector<Entry> found;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t owner = x.first[static_cast<size_t>(i)];
      found.clear();
      const auto add = [&](int64_t group_row, float similarity) {
        const auto g = static_cast<size_t>(groups.number[static_cast<size_t>(group_row)]);
        int64_t taken = 0;  // a group's first k members are enough
        for (int64_t t = groups.starts[g]; t < groups.starts[g + 1] && taken < k; ++t) {
          const int32_t row = groups.members[static_cast<size_t>(t)];
          if (self && row == i) continue;
          found.push_back({similarity, row});
          ++taken;
        }
      };
      if (self) add(owner, 1.0F);
      for (int64_t c = 0; c < listed; ++c) {
        const auto at = static_cast<size_t>(owner * listed + c);
        if (lists[at] < 0) break;
        // Once k rows are found, only groups as near as the k-th can matter, by their row numbers.
        const bool enough = static_cast<int64_t>(found.size()) >= k;
        if (enough && values[at] < found.back().similarity) break;
        add(lists[at], values[at]);
      }
      const int64_t kept = std::min<int64_t>(k, static_cast<int64_t>(found.size()));
      std::partial_sort(found.begin(), found.begin() + kept, found.end());
      for (int64_t c = 0; c < k; ++c) {
        indices[i * k + c] = c < kept ? found[static_cast<size_t>(c)].row : -1;
        similarities[i * k + c] =
            c < kept ? found[static_cast<size_t>(c)].similarity : -std::numeric_limits<float>::infinity();
      }
    }
  });
}

}  // namespace obverse
