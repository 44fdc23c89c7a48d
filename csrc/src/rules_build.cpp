// From the users' rules to what rules.cpp asks: a set of entities for every set of types, edges by subject, and who may
// stand as a subject at all.
#include <algorithm>
#include <numeric>

#include "bits.hpp"
#include "obverse/rules.hpp"

namespace obverse {
namespace {

std::shared_ptr<const Subset> everything(const std::shared_ptr<const Trie>& trie) {
  std::vector<uint32_t> terminals;
  for (uint32_t node = 1; node < trie->num_nodes(); ++node) {
    if (trie->is_terminal(node)) terminals.push_back(node);
  }
  return std::make_shared<Subset>(trie, terminals);
}

}  // namespace

Rules::Rules(std::shared_ptr<const Trie> entities, std::shared_ptr<const Trie> relations, bool unique,
             const TypeRules* types, const GraphRules* graph)
    : entities_(std::move(entities)), relations_(std::move(relations)), unique_(unique) {
  // Types and graphs keep arrays by rank, so both tries' ranks must be what they say.
  require((types == nullptr && graph == nullptr) || (entities_->is_sound() && relations_->is_sound()),
          "types and graph need sound tries, got damaged ones");
  all_relations_ = everything(relations_);
  const size_t num_relations = all_relations_->terminals().size();
  subject_set_.assign(num_relations, kAny);
  object_set_.assign(num_relations, kAny);
  relation_open_ = no_bits(num_relations);
  if (types != nullptr) add_types(*types);
  for (size_t r = 0; r < num_relations; ++r) {
    const auto some = [&](uint32_t set) { return set == kAny || sets_[set].reaches(0); };
    if (some(subject_set_[r]) && some(object_set_[r])) set_one(&relation_open_, r);
  }
  if (graph != nullptr) add_graph(*graph);
  if (typed_ || has_graph_) find_subjects();
  require(!some_subjects_ || subjects_.reaches(0),
          "the types and the graph must allow at least one triplet, got none");
}

/// A set's bits from its members': every node that leads to one.
NodeSet Rules::node_set(std::vector<uint64_t> member) const {
  NodeSet set{no_bits(entities_->num_nodes()), std::move(member), {}};
  uint32_t rank = 0;
  for (uint32_t node = 0; node < entities_->num_nodes(); ++node) {
    if (entities_->is_terminal(node) && set.holds(rank++)) set_one(&set.below, node);
  }
  // Children have higher numbers than their parents, so one walk from the end is enough.
  for (auto node = static_cast<uint32_t>(entities_->num_nodes()); node-- > 0;) {
    if (set.reaches(node)) continue;
    const auto [begin, end] = entities_->child_range(node);
    if (any_bit(set.below, begin, end)) set_one(&set.below, node);
  }
  set.root_mask.assign((entities_->token_bound() + 31) / 32, 0);
  const auto [begin, end] = entities_->child_range(0);
  for (uint32_t child = begin; child < end; ++child) {
    const uint32_t token = entities_->token(child);
    if (set.reaches(child)) set.root_mask[token / 32] |= static_cast<int32_t>(1U << (token % 32));
  }
  return set;
}

uint32_t Rules::set_of(const std::vector<uint32_t>& wanted, const TypeRules& types,
                       std::vector<std::vector<uint32_t>>* known) {
  if (wanted.empty()) return kAny;
  std::vector<uint32_t> sorted = wanted;
  std::sort(sorted.begin(), sorted.end());
  const auto it = std::find(known->begin(), known->end(), sorted);
  if (it != known->end()) return static_cast<uint32_t>(it - known->begin());
  std::vector<uint64_t> member = no_bits(entities_->num_terminals());
  const std::vector<uint32_t> nodes = entities_->nodes_of_sequences();
  for (size_t entity = 0; entity < types.types.size(); ++entity) {
    for (const int32_t type : types.types[entity]) {
      if (std::binary_search(sorted.begin(), sorted.end(), static_cast<uint32_t>(type))) {
        set_one(&member, entities_->rank(nodes[entity]));
        break;
      }
    }
  }
  sets_.push_back(node_set(std::move(member)));
  known->push_back(std::move(sorted));
  return static_cast<uint32_t>(sets_.size() - 1);
}

void Rules::add_types(const TypeRules& types) {
  typed_ = true;
  require(types.types.size() == entities_->num_sequences(), "types must be given for each of ",
          entities_->num_sequences(), " entities, got ", types.types.size());
  require(types.subject.size() == relations_->num_sequences() && types.object.size() == types.subject.size(),
          "subject and object types must be given for each of ", relations_->num_sequences(),
          " relations, got ", types.subject.size(), " and ", types.object.size());
  std::vector<std::vector<uint32_t>> known;
  const std::vector<uint32_t> nodes = relations_->nodes_of_sequences();
  for (size_t relation = 0; relation < nodes.size(); ++relation) {
    // Of relations with the same tokens the first one's types hold.
    if (relations_->sequence_ids(nodes[relation]).front() != relation) continue;
    const size_t at = all_relations_->find_terminal(nodes[relation]);
    subject_set_[at] = set_of(types.subject[relation], types, &known);
    object_set_[at] = set_of(types.object[relation], types, &known);
  }
}

void Rules::add_graph(const GraphRules& graph) {
  has_graph_ = true;
  only_graph_ = graph.only;
  const size_t count = graph.subjects.size();
  require(graph.relations.size() == count && graph.objects.size() == count,
          "a graph's three columns must have one length, got ", count, ", ", graph.relations.size(), ", ",
          graph.objects.size());
  const std::vector<uint32_t> nodes = entities_->nodes_of_sequences();
  const std::vector<uint32_t> relation_nodes = relations_->nodes_of_sequences();
  const auto node_of = [](const std::vector<uint32_t>& of, int32_t i, size_t row, const char* what) {
    require(i >= 0 && static_cast<size_t>(i) < of.size(), what, " of row ", row, " must be in [0, ",
            of.size(), "), got ", i);
    return of[static_cast<size_t>(i)];
  };
  edge_begin_.assign(entities_->num_terminals() + 1, 0);
  std::vector<uint32_t> subject_rank(count);
  for (size_t i = 0; i < count; ++i) {
    subject_rank[i] = entities_->rank(node_of(nodes, graph.subjects[i], i, "the subject"));
    ++edge_begin_[subject_rank[i] + 1];
  }
  std::partial_sum(edge_begin_.begin(), edge_begin_.end(), edge_begin_.begin());
  edges_.resize(count);
  std::vector<uint32_t> next(edge_begin_.begin(), edge_begin_.end() - 1);
  for (size_t i = 0; i < count; ++i) {
    edges_[next[subject_rank[i]]++] = {node_of(relation_nodes, graph.relations[i], i, "the relation"),
                                       node_of(nodes, graph.objects[i], i, "the object")};
  }
  for (size_t rank = 0; rank + 1 < edge_begin_.size(); ++rank) {
    std::sort(edges_.begin() + edge_begin_[rank], edges_.begin() + edge_begin_[rank + 1]);
  }
}

/// The entities that may stand as a subject before anything is written.
void Rules::find_subjects() {
  std::vector<uint64_t> member = no_bits(entities_->num_terminals());
  bool all = false;
  for (size_t r = 0; r < subject_set_.size() && !only_graph_; ++r) {
    if (!is_set(relation_open_, r)) continue;
    all = all || subject_set_[r] == kAny;
    if (subject_set_[r] == kAny) continue;
    for (size_t w = 0; w < member.size(); ++w) member[w] |= sets_[subject_set_[r]].member[w];
  }
  if (all) std::fill(member.begin(), member.end(), ~uint64_t{0});
  some_subjects_ = !all;
  uint32_t rank = 0;
  for (uint32_t node = 0; has_graph_ && node < entities_->num_nodes(); ++node) {
    if (!entities_->is_terminal(node)) continue;
    const bool has_edges = edge_begin_[rank + 1] > edge_begin_[rank];
    if (has_edges && only_graph_ && subject_is_open(node, {})) set_one(&member, rank);
    if (has_edges && !only_graph_ && is_set(member, rank) && !subject_is_open(node, {})) {
      clear_one(&member, rank);
      some_subjects_ = true;
    }
    ++rank;
  }
  if (some_subjects_) subjects_ = node_set(std::move(member));
}

}  // namespace obverse
