// Exact joins by cosine: no pair is left out but by a proved bound (docs/exactness.md).
//
// Pairs go through three sieves: a prefix of the int8 rows with the tails' norms, the whole int8 rows, and the cosine
// itself (quantised.hpp). What a join keeps is defined by a total order of (cosine, row), so neither the order of work
// nor the processor nor the thresholds it started from change a bit of it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/quantised.hpp"
#include "obverse/span.hpp"

namespace obverse {

/// One side of a join: rows with what vector_norms and quantise_rows made of them, all [N].
struct JoinSide {
  Vectors x;
  const double* norms = nullptr;
  const int8_t* q = nullptr;  // [N, width]
  const float* error = nullptr;
};

/// Both sides' quantisation; for a self-join y is x (the same pointers).
struct JoinProblem {
  JoinSide x, y;
  bool self = false;
  int64_t width = 0;   // of q: a multiple of 64, at most 65536
  double scale = 1.0;  // at least 2^-12
  VectorRun run;
};

/// What was proved, in pairs.
struct JoinCounts {
  int64_t pairs = 0;           // all that the join is about
  int64_t passed_prefix = 0;   // not ruled out by a prefix
  int64_t passed_rows = 0;     // nor by the whole int8 rows
  int64_t evaluated = 0;       // cosines taken
  double prefix_values = 0.0;  // int8 products of the prefix sieve
  void add(const JoinCounts& other);
};

/// The k nearest rows of y for each row of x (self: of x for each other row of x). Lists are those of `rows` only.
class TopKJoin {
 public:
  /// `rows` and `columns`: the rows of x and y that take part, no two bit-equal ones (else it only gets slow); self:
  /// `columns` is not used. The problem's memory must outlive this. Throws ValueError on sizes that can't be.
  TopKJoin(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns, int64_t k);
  ~TopKJoin();
  TopKJoin(const TopKJoin&) = delete;
  TopKJoin& operator=(const TopKJoin&) = delete;

  /// Neighbours to start from: candidates [N, m] row numbers of y, in any order, -1 for none. Any ids are right, good
  /// ones make it fast.
  void seed(span<const int32_t> candidates, int64_t m);
  /// Neighbours to start from by comparing rows that random trees put together, then neighbours of neighbours.
  void seed_by_trees(int64_t trees, int64_t rounds, uint64_t seed);
  /// Sorts rows by their thresholds; after this, steps. Nothing may be seeded any more.
  void start();
  int64_t steps() const;
  /// Steps in any order, each once: a band of rows against everything that it has not met.
  void step(int64_t index);

  /// [N, k], -1 and -infinity in rows that are not of `rows` and in places not (yet) filled.
  span<int32_t> indices();
  span<float> similarities();
  /// The order that start() chose, needed to go on from saved lists: start() then takes it instead.
  span<const int32_t> order() const;
  void restore(span<const int32_t> order, span<const int32_t> indices, span<const float> similarities);
  const JoinCounts& counts() const;

 private:
  class Work;
  std::unique_ptr<Work> work_;
};

/// All pairs of a cosine of at least `threshold`: rows of x with rows of y (self: i < j by place in `rows`).
class ThresholdJoin {
 public:
  /// Pairs beyond `most` are counted, not kept.
  ThresholdJoin(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns,
                float threshold, int64_t most);
  ~ThresholdJoin();
  ThresholdJoin(const ThresholdJoin&) = delete;
  ThresholdJoin& operator=(const ThresholdJoin&) = delete;
  int64_t steps() const;
  void step(int64_t index);

  /// In no order: that is the caller's to fix.
  const std::vector<int32_t>& rows() const;
  const std::vector<int32_t>& columns() const;
  const std::vector<float>& similarities() const;
  /// Pairs found so far, and how many of them each row of x is in (self: on either side).
  int64_t total() const;
  const std::vector<int64_t>& by_row() const;
  const JoinCounts& counts() const;

 private:
  class Work;
  std::unique_ptr<Work> work_;
};

/// How many rows of the other side lie in each row's ball, and in how many balls it lies: row i of x is inside the ball
/// of row j of y where their cosine is at least radius_y[j], and the reverse.
class BallJoin {
 public:
  /// radius_x [N], radius_y [M]; weight_x, weight_y: how many rows each stands for.
  struct Balls {
    const float* radius_x = nullptr;
    const float* radius_y = nullptr;
    const int64_t* weight_x = nullptr;
    const int64_t* weight_y = nullptr;
  };
  BallJoin(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns,
           const Balls& balls);
  ~BallJoin();
  BallJoin(const BallJoin&) = delete;
  BallJoin& operator=(const BallJoin&) = delete;
  int64_t steps() const;
  void step(int64_t index);

  const std::vector<int64_t>& inside_y() const;   // [M]: rows i of x whose ball holds y_j
  const std::vector<int64_t>& inside_x() const;   // [N]: rows j of y that lie in x_i's ball
  const std::vector<int64_t>& reached_x() const;  // [N]: rows j of y whose ball holds x_i
  const JoinCounts& counts() const;

 private:
  class Work;
  std::unique_ptr<Work> work_;
};

/// first[i]: the first row with the same bytes as row i.
struct EqualRows {
  span<const int64_t> first;
};

/// Lists [N, listed] between first rows (of rows that are not, anything) to lists [N, k] between all rows: by falling
/// cosine, equal ones by row; -1 and -infinity where there are fewer than k. Self: equal rows are neighbours of cosine
/// 1, a row not its own. The k nearest first rows (self: other than its own) are enough for the k nearest rows.
void expand_equal_rows(const EqualRows& x, const EqualRows& y, bool self, span<const int32_t> lists,
                       span<const float> values, int64_t listed, int64_t k, int64_t* indices,
                       float* similarities, int threads);

}  // namespace obverse
