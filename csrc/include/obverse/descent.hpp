// Approximate nearest-neighbour graph of int8 rows among themselves.
//
// 1. Carving. The rows are divided among leaders drawn from them, each row going to its `fanout` nearest, and the
//    parts are divided again until none has more than `leaf` rows; all pairs of a leaf are compared. This is done
//    again with other leaders until little changes. (Ball carving into overlapping leaves: PiPNN, Rubel et al. 2026.)
// 2. Rounds of NN-descent (Dong, Moses and Li, WWW 2011): the neighbours of a row, in both directions, are compared
//    with one another if one of them is new. A round goes through the rows in a few stretches, each synchronous: what
//    is compared depends on the lists as the stretch began, and a list's content not on the order of comparisons, so
//    that any number of threads gives the same. (Only a stretch's neighbours are copied: an eighth of the memory.)
//
// All work goes through joins of small blocks by int8 tiles (csrc/src/descent_kernels.hpp). Rows whose bytes are equal
// are one row here: 20,000 equal rows would fill each other's lists and take 20,000^2 comparisons.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "obverse/quantised.hpp"
#include "obverse/span.hpp"

namespace obverse {

struct DescentSettings {
  int32_t degree = 16;    // entries of a list, a multiple of 8 in [8, 256]
  int32_t leaf = 1024;    // [32, 4096]
  int32_t fanout = 4;     // [1, 4]
  int32_t carvings = 12;  // at most, [1, 64]
  double settled = 0.03;  // no more carvings after one that changes no more than this share of all entries
  int32_t reverse = 24;   // neighbours taken from the other direction, [0, 256]
  int32_t rounds = 2;     // at most, [0, 64]
  double delta = 0.001;   // no more rounds after one that changes no more than this share of all entries
  uint64_t seed = 0;
  int32_t threads = 1;
  VectorIsa isa = VectorIsa::kAvx512Vnni;  // at most
};

struct DescentProgress {
  std::string part;       // "carving", "round" or "done"
  int32_t number = 0;     // of that part, from 0
  double fraction = 0.0;  // of it that is done
  int64_t evaluated = 0;  // dot products, in that part so far
  int64_t updates = 0;    // entries of lists that the part changed; 0 until it is done
};

class Descent {
 public:
  /// `q` [n, width], row-major, width a multiple of 64; it must live until `done`. Throws ValueError on bad settings
  /// and for 2^30 rows and more.
  Descent(span<const int8_t> q, int64_t n, int32_t width, const DescentSettings& settings);
  ~Descent();
  Descent(const Descent&) = delete;
  Descent& operator=(const Descent&) = delete;

  /// A piece of the work, a fraction of a second of it; says where it is. After "done" it does nothing.
  DescentProgress step();

  /// out [n, m]: the best neighbours found, by (dot product, -id), -1 where there are fewer; never the row itself.
  void candidates(int32_t m, span<int32_t> out) const;

  bool done() const;         // from then on `q` is not read any more
  int64_t nbytes() const;    // of the lists and what the rounds use
  int64_t distinct() const;  // rows that differ from all before them

 private:
  class Work;
  std::unique_ptr<Work> work_;
};

}  // namespace obverse
