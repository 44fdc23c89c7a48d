#include "obverse/graph.hpp"

#include <algorithm>
#include <limits>
#include <tuple>

namespace obverse {
namespace {

constexpr int64_t kMaxItems = std::numeric_limits<int32_t>::max();

uint32_t checked_count(int64_t count, const char* what) {
  require(count >= 0 && count < kMaxItems, what, " must be in [0, 2^31 - 1), got ", count);
  return static_cast<uint32_t>(count);
}

void check_range(span<const int32_t> values, uint32_t limit, const char* what) {
  for (size_t i = 0; i < values.size(); ++i) {
    require(values[i] >= 0 && static_cast<uint32_t>(values[i]) < limit, what, "[", i, "] must be in [0, ",
            limit, "), got ", values[i]);
  }
}

void check_mask(span<const uint8_t> mask, uint32_t expected, const char* what) {
  require(mask.empty() || mask.size() == expected, what, " must have length ", expected, ", got ",
          mask.size());
}

}  // namespace

Graph::Graph(int64_t num_entities, int64_t num_relations, span<const int32_t> heads,
             span<const int32_t> predicates, span<const int32_t> tails)
    : num_entities_(checked_count(num_entities, "num_entities")),
      num_relations_(checked_count(num_relations, "num_relations")) {
  require(heads.size() == predicates.size() && heads.size() == tails.size(),
          "heads, predicates and tails must have one length, got ", heads.size(), ", ", predicates.size(),
          ", ", tails.size());
  require(heads.size() < static_cast<size_t>(kMaxItems), "at most 2^31 - 1 edges, got ", heads.size());
  check_range(heads, num_entities_, "heads");
  check_range(predicates, num_relations_, "predicates");
  check_range(tails, num_entities_, "tails");
  std::vector<Edge> edges;
  edges.reserve(heads.size());
  for (size_t i = 0; i < heads.size(); ++i) {
    if (heads[i] != tails[i]) {
      edges.push_back({static_cast<uint32_t>(heads[i]), static_cast<uint32_t>(predicates[i]),
                       static_cast<uint32_t>(tails[i])});
    }
  }
  build(std::move(edges));
}

Graph::Graph(uint32_t num_entities, uint32_t num_relations, std::vector<Edge> edges)
    : num_entities_(num_entities), num_relations_(num_relations) {
  build(std::move(edges));
}

std::shared_ptr<const Graph> Graph::filtered(span<const uint8_t> relation_allowed,
                                             span<const uint8_t> entity_allowed) const {
  check_mask(relation_allowed, num_relations_, "relation_allowed");
  check_mask(entity_allowed, num_entities_, "entity_allowed");
  const auto entity_ok = [&](uint32_t node) { return entity_allowed.empty() || entity_allowed[node] != 0; };
  std::vector<Edge> edges;
  for (uint32_t relation = 0; relation < num_relations_; ++relation) {
    if (!relation_allowed.empty() && relation_allowed[relation] == 0) continue;
    for (size_t e = relation_begin(relation); e < relation_end(relation); ++e) {
      if (entity_ok(heads_[e]) && entity_ok(tails_[e])) edges.push_back({heads_[e], relation, tails_[e]});
    }
  }
  return std::shared_ptr<const Graph>(new Graph(num_entities_, num_relations_, std::move(edges)));
}

void Graph::build(std::vector<Edge> edges) {
  const auto key = [](const Edge& e) { return std::tuple(e.relation, e.head, e.tail); };
  std::sort(edges.begin(), edges.end(), [&](const Edge& a, const Edge& b) { return key(a) < key(b); });
  edges.erase(
      std::unique(edges.begin(), edges.end(), [&](const Edge& a, const Edge& b) { return key(a) == key(b); }),
      edges.end());
  relation_edges_.assign(num_relations_ + size_t{1}, 0);
  heads_.reserve(edges.size());
  tails_.reserve(edges.size());
  for (const Edge& edge : edges) {
    ++relation_edges_[edge.relation + 1];
    heads_.push_back(edge.head);
    tails_.push_back(edge.tail);
  }
  for (size_t r = 0; r < num_relations_; ++r) relation_edges_[r + 1] += relation_edges_[r];
  index_by_node();
}

void Graph::index_by_node() {
  node_entries_.assign(num_entities_ + size_t{1}, 0);
  for (size_t e = 0; e < heads_.size(); ++e) {
    ++node_entries_[heads_[e] + 1];
    ++node_entries_[tails_[e] + 1];
  }
  for (size_t n = 0; n < num_entities_; ++n) node_entries_[n + 1] += node_entries_[n];

  // Edges are visited by ascending (relation, head, tail), so a stable scatter, outgoing before incoming
  // within a relation, leaves every node's entries sorted by (relation, direction, other).
  others_.resize(2 * heads_.size());
  std::vector<uint32_t> relation_direction(others_.size());
  std::vector<uint32_t> cursor(node_entries_.begin(), node_entries_.end() - 1);
  const auto put = [&](uint32_t node, uint32_t other, uint32_t key) {
    others_[cursor[node]] = other;
    relation_direction[cursor[node]++] = key;
  };
  for (uint32_t relation = 0; relation < num_relations_; ++relation) {
    for (size_t e = relation_begin(relation); e < relation_end(relation); ++e) {
      put(heads_[e], tails_[e], 2 * relation);
    }
    for (size_t e = relation_begin(relation); e < relation_end(relation); ++e) {
      put(tails_[e], heads_[e], 2 * relation + 1);
    }
  }
  node_groups_.assign(1, 0);
  node_groups_.reserve(num_entities_ + size_t{1});
  for (uint32_t node = 0; node < num_entities_; ++node) {
    for (uint32_t i = node_entries_[node]; i < node_entries_[node + 1]; ++i) {
      const uint32_t key = relation_direction[i];
      if (i == node_entries_[node] || relation_direction[i - 1] != key) {
        groups_.push_back({i, key >> 1, (key & 1) == 0});
      }
    }
    node_groups_.push_back(static_cast<uint32_t>(groups_.size()));
  }
  groups_.push_back({static_cast<uint32_t>(others_.size()), 0, false});
}

size_t Graph::nbytes() const {
  const size_t words = relation_edges_.size() + heads_.size() + tails_.size() + node_entries_.size() +
                       node_groups_.size() + others_.size();
  return words * sizeof(uint32_t) + groups_.size() * sizeof(EdgeGroup);
}

}  // namespace obverse
