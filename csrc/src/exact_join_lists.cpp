#include "exact_join_lists.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>

#include "parallel.hpp"

namespace obverse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// One byte a row: a list is changed in well under a microsecond, so nobody waits long.
class RowLock {
 public:
  explicit RowLock(uint8_t& byte) : lock_(byte) {
    while (lock_.exchange(1, std::memory_order_acquire) != 0) std::this_thread::yield();
  }
  ~RowLock() { lock_.store(0, std::memory_order_release); }
  RowLock(const RowLock&) = delete;
  RowLock& operator=(const RowLock&) = delete;

 private:
  std::atomic_ref<uint8_t> lock_;
};

}  // namespace

NeighbourLists::NeighbourLists(const JoinProblem& problem, int64_t k)
    : problem_(problem),
      k_(k),
      cosine_(problem),
      indices_(static_cast<size_t>(problem.x.x.rows * k), -1),
      similarities_(static_cast<size_t>(problem.x.x.rows * k), -kInfinity),
      locks_(static_cast<size_t>(problem.x.x.rows)) {}

float NeighbourLists::threshold(int32_t row) const {
  // Read while another thread may raise it: an old value is lower, so nothing is lost.
  auto& last = const_cast<float&>(similarities_[static_cast<size_t>((row + int64_t{1}) * k_ - 1)]);
  return std::atomic_ref<float>(last).load(std::memory_order_relaxed);
}

void NeighbourLists::insert(int32_t row, int32_t id, float similarity) {
  if (similarity < threshold(row)) return;
  const RowLock lock(locks_[static_cast<size_t>(row)]);
  int32_t* const ids = indices_.data() + row * k_;
  float* const values = similarities_.data() + row * k_;
  // The first place that does not come before (similarity, id); an empty one (-1, -infinity) never does.
  int64_t low = 0, high = k_;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const bool before =
        values[middle] > similarity || (values[middle] == similarity && ids[middle] >= 0 && ids[middle] < id);
    (before ? low : high) = before ? middle + 1 : middle;
  }
  if (low == k_ || (ids[low] == id && values[low] == similarity)) return;
  std::copy_backward(ids + low, ids + k_ - 1, ids + k_);
  ids[low] = id;
  std::atomic_ref<float> last(values[k_ - 1]);  // what other threads read
  if (low == k_ - 1) {
    last.store(similarity, std::memory_order_relaxed);
    return;
  }
  last.store(values[k_ - 2], std::memory_order_relaxed);
  std::copy_backward(values + low, values + k_ - 2, values + k_ - 1);
  values[low] = similarity;
}

void NeighbourLists::fill(span<const int32_t> rows, span<const int32_t> columns,
                          span<const int32_t> candidates, int64_t m, JoinCounts& counts) {
  std::vector<bool> member(static_cast<size_t>(problem_.y.x.rows));
  for (const int32_t j : problem_.self ? rows : columns) member[static_cast<size_t>(j)] = true;
  std::atomic<int64_t> evaluated{0};
  parallel_for(problem_.run.threads, static_cast<int64_t>(rows.size()), 256,
               [&](int64_t first, int64_t last, int) {
                 std::vector<int32_t> own;
                 int64_t taken = 0;
                 const auto gather = [&](int32_t row, int32_t of) {
                   for (int64_t c = 0; c < m; ++c) {
                     const int32_t j = candidates[static_cast<size_t>(of * m + c)];
                     if (j < 0 || j >= problem_.y.x.rows || (problem_.self && j == row)) continue;
                     if (!member[static_cast<size_t>(j)]) continue;
                     own.push_back(j);
                     cosine_.prefetch(j);
                   }
                   std::sort(own.begin(), own.end());
                   own.erase(std::unique(own.begin(), own.end()), own.end());
                 };
                 for (int64_t t = first; t < last; ++t) {
                   const int32_t row = rows[static_cast<size_t>(t)];
                   own.clear();
                   gather(row, row);
                   // Too few (they were equal rows, say): a list that is not full has no threshold, and every pair
                   // would pass for it. Candidates of candidates are no worse than nothing.
                   const std::vector<int32_t> near = problem_.self ? own : std::vector<int32_t>();
                   for (size_t a = 0; a < near.size() && static_cast<int64_t>(own.size()) < k_; ++a) {
                     gather(row, near[a]);
                   }
                   for (const int32_t j : own) insert(row, j, cosine_(row, j));
                   taken += static_cast<int64_t>(own.size());
                 }
                 evaluated += taken;
               });
  counts.evaluated += evaluated;
}

void NeighbourLists::floors(const int32_t* rows, int64_t count, bool column, float* floors) const {
  for (int64_t t = 0; t < count; ++t) floors[t] = column ? kInfinity : threshold(rows[t]);
}

void NeighbourLists::take(span<const FoundPair> pairs, JoinCounts& counts) {
  constexpr size_t kAhead = 6;
  for (size_t t = 0; t < pairs.size(); ++t) {
    if (t + kAhead < pairs.size()) cosine_.prefetch(pairs[t + kAhead].column);
    const auto [row, column, middle] = pairs[t];
    // Thresholds may have risen since the tile began. 1e-6: the rounding of these few floats.
    const float most = middle + problem_.x.error[row] + problem_.y.error[column] + 1e-6F;
    const bool to_row = most >= threshold(row), to_column = problem_.self && most >= threshold(column);
    if (!to_row && !to_column) continue;
    const float similarity = cosine_(row, column);
    ++counts.evaluated;
    if (to_row) insert(row, column, similarity);
    if (to_column) insert(column, row, similarity);
  }
}

}  // namespace obverse
