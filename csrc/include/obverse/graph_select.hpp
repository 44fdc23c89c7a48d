// Choosing rows of a nearest-neighbour graph: facility location and k-center, both greedy, both exact for the graph.
//
// The graph is undirected: rows are joined where either lists the other. Memory: 8 bytes a listed neighbour and
// direction, 16 k a row of k neighbours, and 8 a row; while it is built, as much again for the longest half.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "obverse/span.hpp"

namespace obverse {

/// An undirected weighted graph in compressed rows; each row's neighbours by rising number, itself left out.
class NeighbourGraph {
 public:
  struct Edge {
    uint32_t row;
    float similarity;
  };

  /// `indices`, `similarities`: [n, k] as neighbour lists come: -1 where there are fewer, entries that name their own
  /// row are left out. Where both of two rows list each other with different values the greater counts. Throws
  /// ValueError on an index out of range and on a similarity that is not finite.
  template <typename Index>
  NeighbourGraph(span<const Index> indices, span<const float> similarities, int64_t n, int64_t k);

  size_t size() const { return offsets_.size() - 1; }
  size_t num_edges() const { return edges_.size() / 2; }
  span<const Edge> edges(size_t row) const {
    return span<const Edge>(edges_).subspan(offsets_[row], offsets_[row + 1] - offsets_[row]);
  }
  size_t nbytes() const { return 8 * offsets_.capacity() + sizeof(Edge) * edges_.capacity(); }

 private:
  std::vector<size_t> offsets_;
  std::vector<Edge> edges_;
};

/// Maximises f(S) = sum over rows i of w_i max(0, max over j in S of q_j s_ij), where s_ii = 1 and s_ij is an edge's
/// similarity (0 without one; negative ones count as 0), by the greedy rule: at least (1 - 1/e) of the best f of any
/// set of that size (Nemhauser, Wolsey and Fisher 1978). Gains only ever fall, also as computed here, so that a row
/// whose gain of old is below another's of now need not be looked at (Minoux 1978): the choice is exactly that of the
/// plain greedy rule in double precision, equal gains to the lower row.
class FacilityLocation {
 public:
  /// weights: [n] how much a row counts when it is covered, or empty for 1; qualities: [n] how well a chosen row
  /// covers, or empty for 1. All finite and >= 0, else ValueError. The graph must outlive this.
  FacilityLocation(const NeighbourGraph& graph, span<const double> weights, span<const double> qualities);

  /// Chooses up to `count` more rows (fewer when none are left), in order, with their gains.
  void choose(int64_t count, std::vector<int64_t>* rows, std::vector<double>* gains);

  int64_t num_evaluated() const { return num_evaluated_; }  // gains computed so far
  double total() const { return total_; }                   // f of all rows

 private:
  struct Bound {
    double gain;
    uint32_t row;
    bool operator<(const Bound& other) const {  // `other` is chosen before this one
      return gain < other.gain || (gain == other.gain && row > other.row);
    }
  };

  double weight(size_t row) const { return weight_.empty() ? 1.0 : weight_[row]; }
  double quality(size_t row) const { return quality_.empty() ? 1.0 : quality_[row]; }
  double gain(size_t row) const;
  void cover(size_t row);
  void sink();

  const NeighbourGraph* graph_;
  std::vector<double> weight_, quality_;
  std::vector<double> covered_;  // max over the chosen j of q_j s_ij
  std::vector<Bound> heap_;      // a max-heap of gains, or of what they were
  int64_t num_evaluated_ = 0;
  double total_ = 0.0;
};

/// Farthest-first traversal (Gonzalez 1985) in the metric of shortest paths, an edge's length being the chord
/// sqrt(2 - 2 s) between unit vectors: the greatest distance of any row to the chosen ones is at most twice the least
/// possible for that many rows. Rows without a path to a chosen one are infinitely far; ties go to the lower row.
class GraphCenters {
 public:
  /// `first`: the row that is chosen first. The graph must outlive this.
  GraphCenters(const NeighbourGraph& graph, int64_t first);

  /// Chooses up to `count` more rows, in order, with their distances to those before (infinity for the first).
  void choose(int64_t count, std::vector<int64_t>* rows, std::vector<double>* distances);

  /// The greatest distance of a row to the chosen ones; 0 without rows.
  double radius() const;

 private:
  void relax(uint32_t center);

  const NeighbourGraph* graph_;
  int64_t first_;  // -1 once it is chosen
  std::vector<double> distance_;
  std::vector<std::pair<double, uint32_t>> heap_, queue_;
};

}  // namespace obverse
