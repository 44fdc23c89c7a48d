// An immutable labelled multigraph in two orders: by node (both directions) and by relation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/span.hpp"

namespace obverse {

/// One directed, labelled edge (a triple) by indices.
struct Edge {
  uint32_t head;
  uint32_t relation;
  uint32_t tail;
};

/// Incident edges of one node that share relation and direction: others are entries [begin, end).
struct EdgeGroup {
  uint32_t begin;
  uint32_t relation;
  bool outgoing;
};

/// Edges without self loops and repeated triples, so that the order of the input never matters.
///
/// Memory: 8 bytes an edge by node (the other end, twice), 8 by relation, 12 a group, 8 a node.
/// A node's groups are sorted by (relation, direction), a group's others and a relation's edges ascending.
class Graph {
 public:
  /// heads, predicates, tails: one entry an edge. Throws ValueError on unequal lengths, on an index out of
  /// range, and above 2^31 - 1 edges.
  Graph(int64_t num_entities, int64_t num_relations, span<const int32_t> heads,
        span<const int32_t> predicates, span<const int32_t> tails);

  /// The same node and relation numbers with only those edges whose relation and both ends are allowed
  /// (non-zero); an empty span allows all. Throws ValueError on a length other than the number of items.
  std::shared_ptr<const Graph> filtered(span<const uint8_t> relation_allowed,
                                        span<const uint8_t> entity_allowed) const;

  uint32_t num_entities() const { return num_entities_; }
  uint32_t num_relations() const { return num_relations_; }
  /// Distinct triples that are not self loops.
  size_t num_edges() const { return heads_.size(); }
  size_t nbytes() const;

  uint32_t degree(uint32_t node) const { return node_entries_[node + 1] - node_entries_[node]; }
  size_t group_begin(uint32_t node) const { return node_groups_[node]; }
  size_t group_end(uint32_t node) const { return node_groups_[node + 1]; }
  const EdgeGroup& group(size_t g) const { return groups_[g]; }
  /// One past the last entry of group g.
  uint32_t entries_end(size_t g) const { return groups_[g + 1].begin; }
  /// The node at the far end of an entry.
  uint32_t other(size_t entry) const { return others_[entry]; }

  size_t relation_begin(uint32_t relation) const { return relation_edges_[relation]; }
  size_t relation_end(uint32_t relation) const { return relation_edges_[relation + 1]; }
  uint32_t head(size_t edge) const { return heads_[edge]; }
  uint32_t tail(size_t edge) const { return tails_[edge]; }

 private:
  Graph(uint32_t num_entities, uint32_t num_relations, std::vector<Edge> edges);
  void build(std::vector<Edge> edges);
  void index_by_node();

  uint32_t num_entities_ = 0;
  uint32_t num_relations_ = 0;
  std::vector<uint32_t> relation_edges_;  // [num_relations + 1]
  std::vector<uint32_t> heads_, tails_;   // [num_edges], sorted by (relation, head, tail)
  std::vector<uint32_t> node_entries_;    // [num_entities + 1]
  std::vector<uint32_t> node_groups_;     // [num_entities + 1]
  std::vector<EdgeGroup> groups_;         // [num_groups + 1], the last is a sentinel
  std::vector<uint32_t> others_;          // [2 * num_edges]
};

}  // namespace obverse
