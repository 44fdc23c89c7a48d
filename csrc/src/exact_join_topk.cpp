// The top-k join: every row's list is kept in order, so that its last entry is its threshold.
#include <algorithm>

#include "exact_join_lists.hpp"
#include "exact_join_scan.hpp"
#include "exact_join_start.hpp"

namespace obverse {

class TopKJoin::Work {
 public:
  Work(const JoinProblem& given, span<const int32_t> row_ids, span<const int32_t> column_ids, int64_t k)
      : problem(given),
        rows(row_ids.begin(), row_ids.end()),
        columns(column_ids.begin(), column_ids.end()),
        lists(problem, k) {}

  void sort_rows() {
    // Hard rows (low thresholds) meet hard rows: one prefix then suits a whole tile.
    std::stable_sort(rows.begin(), rows.end(),
                     [&](int32_t a, int32_t b) { return lists.threshold(a) < lists.threshold(b); });
  }

  JoinProblem problem;
  std::vector<int32_t> rows, columns;
  NeighbourLists lists;
  JoinCounts counts;
  std::unique_ptr<PairScan> scan;
};

TopKJoin::TopKJoin(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns,
                   int64_t k) {
  require(k >= 1, "k must be >= 1, got ", k);
  check_problem(problem);
  work_ = std::make_unique<Work>(problem, rows, columns, k);
}
TopKJoin::~TopKJoin() = default;

void TopKJoin::seed(span<const int32_t> candidates, int64_t m) {
  Work& work = *work_;
  require(candidates.size() == static_cast<size_t>(work.problem.x.x.rows * m), "candidates must have ", m,
          " entries a row, got ", candidates.size(), " for ", work.problem.x.x.rows, " rows");
  work.lists.fill(work.rows, work.columns, candidates, m, work.counts);
}

void TopKJoin::seed_by_trees(int64_t trees, int64_t rounds, uint64_t seed) {
  Work& work = *work_;
  const TreeStart start{trees, rounds, seed, work.lists.k()};
  const std::vector<int32_t> found = tree_candidates(work.problem, work.rows, work.columns, start);
  work.lists.fill(work.rows, work.columns, found, start.kept, work.counts);
}

void TopKJoin::start() {
  Work& work = *work_;
  if (!work.scan) {
    work.sort_rows();
    work.scan = std::make_unique<PairScan>(work.problem, work.rows, work.columns);
  }
}

int64_t TopKJoin::steps() const { return work_->scan ? work_->scan->steps() : 0; }

void TopKJoin::step(int64_t index) {
  require(work_->scan != nullptr && index >= 0 && index < steps(), "step must be in [0, ", steps(), "), got ",
          index);
  work_->scan->step(index, work_->lists, work_->counts);
}

void TopKJoin::restore(span<const int32_t> order, span<const int32_t> indices,
                       span<const float> similarities) {
  Work& work = *work_;
  require(order.size() == work.rows.size(), "order must have ", work.rows.size(), " rows, got ",
          order.size());
  std::vector<int32_t> before(work.rows), after(order.begin(), order.end());
  std::sort(before.begin(), before.end());
  std::sort(after.begin(), after.end());
  require(before == after, "order must hold the rows of the join, each once");
  require(indices.size() == work.lists.indices().size() && similarities.size() == indices.size(),
          "lists must have ", work.lists.indices().size(), " entries, got ", indices.size());
  std::copy(order.begin(), order.end(), work.rows.begin());
  std::copy(indices.begin(), indices.end(), work.lists.indices().begin());
  std::copy(similarities.begin(), similarities.end(), work.lists.similarities().begin());
  work.scan = std::make_unique<PairScan>(work.problem, work.rows, work.columns);
}

span<int32_t> TopKJoin::indices() { return work_->lists.indices(); }
span<float> TopKJoin::similarities() { return work_->lists.similarities(); }
span<const int32_t> TopKJoin::order() const { return work_->rows; }
const JoinCounts& TopKJoin::counts() const { return work_->counts; }

}  // namespace obverse
