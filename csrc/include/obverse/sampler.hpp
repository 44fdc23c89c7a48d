// Connected sets of edges, drawn so that relations and entities are covered evenly (SynthIE, arXiv 2303.04132,
// section 3.2: walks on the graph, re-weighted inversely to what was drawn, every K walks).
//
// What is drawn, exactly
//   Weights.   w_r = (1 + c_r)^-relation_power and v_n = (1 + c_n)^-entity_power, where c_r counts the edges of
//              relation r and c_n the sets that held node n in all sets before the current block; a block is
//              `reweight_every` sets. Within a block the weights don't move, so set i depends only on (seed, i,
//              counts at its block's start).
//   Seed edge. A relation with probability proportional to w_r (among those with edges), then one of its edges
//              with probability proportional to v_head * v_tail.
//   Growth.    Until the set has its size: a node u of the set, each alike, then one of u's edges, either
//              direction, with probability proportional to w_relation * v_other. Edges between two nodes that the
//              set already joins are left out; a node with no edge left is passed over; when no node is left the
//              set stays shorter than drawn. (Measured on a graph of 240,000 cities and countries: choosing u by
//              v_u instead gave 15 % sets with a cycle against 9 %, and reached a sixth fewer entities.)
//
// What is approximate
//   "Proportional to" is exact where a choice has at most kScanLimit edges. Above that (hubs: a country may have
//   100,000) it is sampling importance resampling: kCandidates edges are drawn proportional to w_relation alone
//   (relation group by w_r * group size, then uniformly inside; for a seed edge uniformly), and one of them is
//   taken proportional to its entity weights. The distribution tends to the exact one as kCandidates grows; an
//   edge's probability is at most kCandidates times what w_relation alone gives it. If all candidates are joined
//   already, the node is scanned in full, so a set is short only when its component truly is.
//
// Cost: O(kScanLimit) memory reads an edge at worst, O(relation groups of the hub) once a block for each hub
// that is met; a block's end costs what the block touched, not the graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/graph.hpp"
#include "obverse/random.hpp"

namespace obverse {

/// What a sampler is told; see the file's head for the meaning.
struct SamplerOptions {
  uint64_t seed = 0;
  std::vector<double> size_weights;  // [k]: weight of sets of 1 .. k edges
  int64_t reweight_every = 1;        // sets
  double relation_power = 1.0;
  double entity_power = 1.0;
};

/// Sets end to end: set i is edges [offsets[i], offsets[i + 1]).
struct SampledSets {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> heads, predicates, tails;
};

/// A stream of sets with a position; not thread-safe.
class Sampler {
 public:
  /// Largest number of edges that a choice scans exactly.
  static constexpr size_t kScanLimit = 64;
  /// Candidates drawn where it does not.
  static constexpr size_t kCandidates = 16;

  /// Masks as for Graph::filtered. Throws ValueError on sizes, powers or masks out of range and where no edge
  /// is allowed.
  Sampler(const std::shared_ptr<const Graph>& graph, SamplerOptions options,
          span<const uint8_t> relation_allowed, span<const uint8_t> entity_allowed);

  /// The next `count` sets.
  SampledSets draw(int64_t count);
  /// Goes on by `count` sets without keeping them (their counts matter, so they are drawn).
  void skip(int64_t count);
  /// Sets drawn or skipped so far.
  int64_t position() const { return position_; }

 private:
  struct Pick {
    bool found;
    Edge edge;
  };

  void make_set();
  void start_block();
  void count_set();
  size_t draw_size(KeyedRandom& random) const;
  Edge seed_edge(KeyedRandom& random);
  bool grow(KeyedRandom& random);
  Pick scan_node(uint32_t node, KeyedRandom& random);
  Pick resample_hub(uint32_t node, KeyedRandom& random);
  span<const double> hub_cumulative(uint32_t node);
  Edge edge_at(uint32_t node, size_t group, size_t entry) const;
  void collect_partners(uint32_t node);
  bool is_partner(uint32_t node) const;
  void add_edge(const Edge& edge);
  void add_node(uint32_t node);

  std::shared_ptr<const Graph> graph_;
  SamplerOptions options_;
  int64_t position_ = 0;
  std::vector<double> size_cumulative_;

  std::vector<uint32_t> relation_counts_, entity_counts_;
  std::vector<double> relation_weights_, relation_cumulative_;
  std::vector<float> entity_weights_;
  std::vector<uint32_t> touched_entities_;
  std::vector<uint8_t> entity_touched_;

  // Hubs (degree above kScanLimit): running sums of w_r * group size, made on first use in a block.
  std::vector<uint32_t> hubs_, hub_offsets_;
  std::vector<int64_t> hub_block_;
  std::vector<double> hub_sums_;
  int64_t block_ = 0;

  // The set under construction.
  std::vector<Edge> edges_;
  std::vector<uint32_t> nodes_, partners_;
  std::vector<uint8_t> exhausted_;  // by place in nodes_
  std::vector<size_t> open_;
  std::vector<double> running_;
};

}  // namespace obverse
