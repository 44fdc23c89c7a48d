// The joins by thresholds that are given: pairs above one, and counts of balls.
#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>

#include "exact_join_scan.hpp"

namespace obverse {
namespace {

constexpr size_t kAhead = 6;     // pairs from a prefetch to its use
constexpr float kSlack = 1e-6F;  // of sums of a few floats of at most 4

/// The sides of a join with the rows that take part: what the scan and its sink refer to.
struct JoinParts {
  JoinParts(const JoinProblem& given, span<const int32_t> row_ids, span<const int32_t> column_ids)
      : problem(given),
        rows(row_ids.begin(), row_ids.end()),
        columns(column_ids.begin(), column_ids.end()),
        cosine(problem),
        scan(problem, rows, columns) {
    check_problem(problem);
  }
  JoinProblem problem;
  std::vector<int32_t> rows, columns;
  ExactCosine cosine;
  PairScan scan;
  JoinCounts counts;
};

}  // namespace

class ThresholdJoin::Work : public JoinParts, public PairSink {
 public:
  Work(const JoinProblem& given, span<const int32_t> row_ids, span<const int32_t> column_ids, float least,
       int64_t most_pairs)
      : JoinParts(given, row_ids, column_ids),
        threshold(least),
        most(most_pairs),
        by_row(static_cast<size_t>(given.x.x.rows)) {}

  void floors(const int32_t*, int64_t count, bool, float* out) const override {
    std::fill_n(out, count, threshold);
  }

  void take(span<const FoundPair> pairs, JoinCounts& own) override {
    std::vector<FoundPair> above;  // its `middle` is the cosine itself
    for (size_t t = 0; t < pairs.size(); ++t) {
      if (t + kAhead < pairs.size()) cosine.prefetch(pairs[t + kAhead].column);
      const float similarity = cosine(pairs[t].row, pairs[t].column);
      if (similarity >= threshold) above.push_back({pairs[t].row, pairs[t].column, similarity});
    }
    own.evaluated += static_cast<int64_t>(pairs.size());
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [row, column, similarity] : above) {
      ++by_row[static_cast<size_t>(row)];
      if (problem.self) ++by_row[static_cast<size_t>(column)];
      if (total++ >= most) continue;
      found_rows.push_back(row);
      found_columns.push_back(column);
      similarities.push_back(similarity);
    }
  }

  float threshold;
  int64_t most, total = 0;
  std::vector<int32_t> found_rows, found_columns;
  std::vector<float> similarities;
  std::vector<int64_t> by_row;

 private:
  std::mutex mutex;
};

ThresholdJoin::ThresholdJoin(const JoinProblem& problem, span<const int32_t> rows,
                             span<const int32_t> columns, float threshold, int64_t most)
    : work_(std::make_unique<Work>(problem, rows, columns, threshold, most)) {}
ThresholdJoin::~ThresholdJoin() = default;
int64_t ThresholdJoin::steps() const { return work_->scan.steps(); }
void ThresholdJoin::step(int64_t index) {
  require(index >= 0 && index < steps(), "step must be in [0, ", steps(), "), got ", index);
  work_->scan.step(index, *work_, work_->counts);
}
const std::vector<int32_t>& ThresholdJoin::rows() const { return work_->found_rows; }
const std::vector<int32_t>& ThresholdJoin::columns() const { return work_->found_columns; }
const std::vector<float>& ThresholdJoin::similarities() const { return work_->similarities; }
int64_t ThresholdJoin::total() const { return work_->total; }
const std::vector<int64_t>& ThresholdJoin::by_row() const { return work_->by_row; }
const JoinCounts& ThresholdJoin::counts() const { return work_->counts; }

class BallJoin::Work : public JoinParts, public PairSink {
 public:
  Work(const JoinProblem& given, span<const int32_t> row_ids, span<const int32_t> column_ids,
       const Balls& all)
      : JoinParts(given, row_ids, column_ids),
        balls(all),
        inside_y(static_cast<size_t>(given.y.x.rows)),
        inside_x(static_cast<size_t>(given.x.x.rows)),
        reached_x(static_cast<size_t>(given.x.x.rows)) {
    require(!given.self, "balls need two sides");
  }

  void floors(const int32_t* ids, int64_t count, bool column, float* out) const override {
    const float* const radius = column ? balls.radius_y : balls.radius_x;
    for (int64_t t = 0; t < count; ++t) out[t] = radius[ids[t]];
  }

  void take(span<const FoundPair> pairs, JoinCounts& own) override {
    for (size_t t = 0; t < pairs.size(); ++t) {
      if (t + kAhead < pairs.size()) cosine.prefetch(pairs[t + kAhead].column);
      const auto [row, column, middle] = pairs[t];
      const float error = problem.x.error[row] + problem.y.error[column] + kSlack;
      const float of_x = balls.radius_x[row], of_y = balls.radius_y[column];
      const float nearer = std::min(of_x, of_y), further = std::max(of_x, of_y);
      // Where the bounds leave no doubt about either ball, the cosine is not needed.
      float similarity = middle;
      const bool above = middle - error >= further;
      const bool between = middle - error >= nearer && middle + error < further;
      if (!above && !between) {
        similarity = cosine(row, column);
        ++own.evaluated;
      }
      add(inside_y, column, similarity >= of_x ? balls.weight_x[row] : 0);
      add(inside_x, row, similarity >= of_x ? balls.weight_y[column] : 0);
      add(reached_x, row, similarity >= of_y ? balls.weight_y[column] : 0);
    }
  }

  Balls balls;
  std::vector<int64_t> inside_y, inside_x, reached_x;

 private:
  static void add(std::vector<int64_t>& counts, int32_t row, int64_t weight) {
    if (weight == 0) return;
    std::atomic_ref<int64_t>(counts[static_cast<size_t>(row)]).fetch_add(weight, std::memory_order_relaxed);
  }
};

BallJoin::BallJoin(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns,
                   const Balls& balls)
    : work_(std::make_unique<Work>(problem, rows, columns, balls)) {}
BallJoin::~BallJoin() = default;
int64_t BallJoin::steps() const { return work_->scan.steps(); }
void BallJoin::step(int64_t index) {
  require(index >= 0 && index < steps(), "step must be in [0, ", steps(), "), got ", index);
  work_->scan.step(index, *work_, work_->counts);
}
const std::vector<int64_t>& BallJoin::inside_y() const { return work_->inside_y; }
const std::vector<int64_t>& BallJoin::inside_x() const { return work_->inside_x; }
const std::vector<int64_t>& BallJoin::reached_x() const { return work_->reached_x; }
const JoinCounts& BallJoin::counts() const { return work_->counts; }

}  // namespace obverse
