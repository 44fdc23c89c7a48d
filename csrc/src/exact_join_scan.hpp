// The walk over all pairs of rows and columns in tiles, through the two int8 sieves to a sink.
#pragma once

#include <cstdint>
#include <vector>

#include "exact_join_kernels.hpp"
#include "memory.hpp"
#include "obverse/exact_join.hpp"

namespace obverse {

/// A pair that the int8 rows don't rule out.
struct FoundPair {
  int32_t row, column;
  float middle;  // scale^2 <q, q>: the cosine is within error[row] + error[column] of it
};

/// What a join makes of such pairs. `floors` and `take` are called from several threads at once.
class PairSink {
 public:
  virtual ~PairSink() = default;
  /// floors[t]: the least cosine that matters to row rows[t] of x (or of y, if `column`), -infinity for all of them,
  /// +infinity for none. A pair matters if it does to one of its two rows.
  virtual void floors(const int32_t* rows, int64_t count, bool column, float* floors) const = 0;
  virtual void take(span<const FoundPair> pairs, JoinCounts& counts) = 0;
};

class PairScan {
 public:
  /// Positions are places in `rows` (and, if not self, `columns`): row numbers in the order in which they are met.
  PairScan(const JoinProblem& problem, span<const int32_t> rows, span<const int32_t> columns);
  int64_t steps() const;
  /// All pairs of band `index` of the rows with the columns (self: with those after each row).
  void step(int64_t index, PairSink& sink, JoinCounts& counts);

 private:
  struct Band;
  struct Tile;
  void load_band(int64_t first, int64_t count, const PairSink& sink, Band& band) const;
  void load_tile(int64_t first, int64_t count, const PairSink& sink, Tile& tile) const;
  size_t choose_prefix(const Band& band, int64_t first, const Tile& tile) const;
  void pack_tile(Tile& tile, int64_t p) const;
  void set_tails(Tile& tile, int64_t p) const;
  void run_tile(const Band& band, Tile& tile, PairSink& sink, JoinCounts& counts) const;
  void scan_row(const Band& band, Tile& tile, int64_t row, const uint64_t* bits, JoinCounts& counts) const;

  const JoinProblem& problem_;
  const JoinKernels& kernels_;
  span<const int32_t> rows_, columns_;
  double unit_;  // scale^2
  std::vector<int64_t> prefixes_;
};

/// Throws ValueError on a problem whose bounds or sums would not fit.
void check_problem(const JoinProblem& problem);

/// The cosine of a row of x and a row of y, as quantised.hpp defines it.
class ExactCosine {
 public:
  explicit ExactCosine(const JoinProblem& problem);
  float operator()(int32_t row, int32_t column) const {
    const double product = dot_(x_ + row * row_bytes_, y_ + column * row_bytes_, columns_);
    return static_cast<float>(product / (x_norms_[row] * y_norms_[column]));
  }
  void prefetch(int32_t column) const {
    for (int64_t b = 0; b < row_bytes_; b += 64) __builtin_prefetch(y_ + column * row_bytes_ + b);
  }

 private:
  double (*dot_)(const void*, const void*, int64_t);
  const char *x_, *y_;
  const double *x_norms_, *y_norms_;
  int64_t columns_, row_bytes_;
};

}  // namespace obverse
