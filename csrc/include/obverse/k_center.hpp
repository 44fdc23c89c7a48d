// Farthest-first traversal over vectors (Gonzalez 1985): the next row is the one whose nearest chosen row is farthest.
//
// By the cosine of quantised.hpp: its order is that of chords and of angles, which are metrics, so that the radius (the
// greatest distance of a row to its nearest chosen one) is at most twice the least possible for that many rows. n rows
// are chosen in n passes over all N.
#pragma once

#include <cstdint>
#include <vector>

#include "obverse/quantised.hpp"
#include "obverse/span.hpp"

namespace obverse {

class VectorCenters {
 public:
  /// `first`: the row that is chosen first. Throws ValueError naming the first row that has a value that isn't finite,
  /// or is all zeros. The rows must outlive this.
  VectorCenters(const Vectors& x, int64_t first, const VectorRun& run);

  /// Chooses up to `count` more rows, in order, with the cosine of each to its nearest row before (-1 for the first).
  /// Equally far rows by rising number.
  void choose(int64_t count, std::vector<int64_t>* rows, std::vector<float>* similarities);

  /// The least, over rows, of the cosine to the nearest chosen row; 1 once all are chosen.
  float least_similarity() const;

 private:
  void cover(int64_t row);

  Vectors x_;
  VectorRun run_;
  int64_t next_;
  std::vector<double> norms_;
  std::vector<float> nearest_;   // the greatest cosine to a chosen row; -2 before there is one
  std::vector<uint8_t> chosen_;  // 1 or 0
};

}  // namespace obverse
