#include "obverse/rules.hpp"

#include <algorithm>
#include <numeric>
#include <queue>

namespace obverse {
namespace {

std::vector<uint64_t> no_bits(size_t count) { return std::vector<uint64_t>((count + 63) / 64, 0); }
void set_one(std::vector<uint64_t>* bits, size_t i) { (*bits)[i / 64] |= uint64_t{1} << (i % 64); }
bool is_set(const std::vector<uint64_t>& bits, size_t i) { return (bits[i / 64] >> (i % 64)) & 1U; }

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
      member[rank / 64] &= ~(uint64_t{1} << (rank % 64));
      some_subjects_ = true;
    }
    ++rank;
  }
  if (some_subjects_) subjects_ = node_set(std::move(member));
}

span<const Rules::Edge> Rules::edges(uint32_t subject) const {
  if (!has_graph_) return {};
  const uint32_t rank = entities_->rank(subject);
  return span<const Edge>(edges_).subspan(edge_begin_[rank], edge_begin_[rank + 1] - edge_begin_[rank]);
}

span<const Rules::Edge> Rules::edges(uint32_t subject, uint32_t relation) const {
  const span<const Edge> all = edges(subject);
  const auto begin = std::lower_bound(all.begin(), all.end(), Edge{relation, 0});
  const auto end = std::lower_bound(begin, all.end(), Edge{relation + 1, 0});
  return {begin, end};
}

bool Rules::in_graph(const Fact& fact) const {
  const span<const Edge> some = edges(fact.subject, fact.relation);
  return std::binary_search(some.begin(), some.end(), Edge{fact.relation, fact.object});
}

template <typename Visit>
void Rules::for_each_written(const Context& context, const Visit& visit) const {
  if (context.pending != nullptr) visit(*context.pending);
  for (uint32_t i = context.last; i != Written::kNone; i = context.written[i].before)
    visit(context.written[i].fact);
}

bool Rules::is_written(const Fact& fact, const Context& context) const {
  bool found = false;
  for_each_written(context, [&](const Fact& other) { found = found || other == fact; });
  return found;
}

bool Rules::is_asked_for(uint32_t entity, const Context& context) const {
  if (context.request == nullptr) return true;
  const Subset& entities = *context.request->entities;
  return entities.find_terminal(entity) < entities.terminals().size();
}

/// Whether this triplet may be written now; its relation's types are the caller's to look at.
bool Rules::allows(const Fact& fact, const Context& context) const {
  if (has_graph_ && in_graph(fact) != only_graph_) return false;
  return !(unique_ && is_written(fact, context));
}

/// The objects that context's subject and relation may not take, though their types fit.
std::vector<uint32_t> Rules::objects_taken_out(const Context& context) const {
  std::vector<uint32_t> out;
  if (unique_) {
    for_each_written(context, [&](const Fact& fact) {
      if (fact.subject == context.subject && fact.relation == context.relation) out.push_back(fact.object);
    });
  }
  if (has_graph_ && !only_graph_) {
    for (const Edge& edge : edges(context.subject, context.relation)) out.push_back(edge.object);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

bool Rules::pair_is_open(uint32_t subject, size_t relation, const Context& context) const {
  if (!is_set(relation_open_, relation) || !in_set(subject_set_[relation], subject)) return false;
  if (context.request != nullptr && !is_set(context.request->relations, relation)) return false;
  Context pair = context;
  pair.subject = subject;
  pair.relation = all_relations_->terminals()[relation];
  if (only_graph_) {
    const span<const Edge> some = edges(subject, pair.relation);
    return std::any_of(some.begin(), some.end(), [&](const Edge& edge) {
      return in_set(object_set_[relation], edge.object) && is_asked_for(edge.object, context) &&
             allows({subject, edge.relation, edge.object}, context);
    });
  }
  if (context.request == nullptr && objects_taken_out(pair).empty()) return true;
  return !objects(pair).is_empty();
}

bool Rules::subject_is_open(uint32_t subject, const Context& context) const {
  if (only_graph_) {
    // Only the relations of its own edges can be open: no need to try all.
    uint32_t before = 0;
    for (const Edge& edge : edges(subject)) {
      if (edge.relation == before) continue;
      before = edge.relation;
      if (pair_is_open(subject, all_relations_->find_terminal(edge.relation), context)) return true;
    }
    return false;
  }
  for (size_t relation = 0; relation < subject_set_.size(); ++relation) {
    if (pair_is_open(subject, relation, context)) return true;
  }
  return false;
}

std::shared_ptr<const Request> Rules::prepare(std::shared_ptr<const Subset> entities) const {
  require(entities->trie() == entities_, "the subset must be one of the constraint's own entities");
  auto request = std::make_shared<Request>();
  const std::vector<uint32_t>& terminals = entities->terminals();
  request->entities = std::move(entities);
  request->relations = no_bits(subject_set_.size());
  const auto some = [&](uint32_t set) {
    return std::any_of(terminals.begin(), terminals.end(), [&](uint32_t t) { return in_set(set, t); });
  };
  for (size_t r = 0; r < subject_set_.size(); ++r) {
    if (is_set(relation_open_, r) && some(subject_set_[r]) && some(object_set_[r]))
      set_one(&request->relations, r);
  }
  request->subjects = no_bits(terminals.size());
  Context context;
  context.request = request.get();
  for (size_t i = 0; i < terminals.size(); ++i) {
    if (subject_is_open(terminals[i], context)) set_one(&request->subjects, i);
  }
  return request;
}

/// Subjects that have lost their last triplet are among those written: nothing else has changed since the start.
Filter Rules::subjects(const Context& context) const {
  std::vector<uint32_t> spent;
  if (unique_) {
    for_each_written(context, [&](const Fact& fact) {
      if (std::find(spent.begin(), spent.end(), fact.subject) != spent.end()) return;
      if (!subject_is_open(fact.subject, context)) spent.push_back(fact.subject);
    });
  }
  Filter filter;
  filter.trie = entities_.get();
  if (context.request != nullptr) {
    filter.only = context.request->entities;
    filter.open = context.request->subjects;
    for (const uint32_t subject : spent) {
      const size_t at = filter.only->find_terminal(subject);
      if (at < filter.only->terminals().size()) filter.open[at / 64] &= ~(uint64_t{1} << (at % 64));
    }
    return filter;
  }
  filter.base = some_subjects_ ? &subjects_ : nullptr;
  std::sort(spent.begin(), spent.end());
  filter.taken_out = std::move(spent);
  close(&filter);
  return filter;
}

Filter Rules::relations(const Context& context) const {
  Filter filter;
  filter.trie = relations_.get();
  filter.only = all_relations_;
  filter.open = no_bits(subject_set_.size());
  if (only_graph_) {
    for (const Edge& edge : edges(context.subject)) {
      const size_t relation = all_relations_->find_terminal(edge.relation);
      if (!is_set(filter.open, relation) && pair_is_open(context.subject, relation, context)) {
        set_one(&filter.open, relation);
      }
    }
    return filter;
  }
  for (size_t relation = 0; relation < subject_set_.size(); ++relation) {
    if (pair_is_open(context.subject, relation, context)) set_one(&filter.open, relation);
  }
  return filter;
}

Filter Rules::objects(const Context& context) const {
  const size_t relation = all_relations_->find_terminal(context.relation);
  const uint32_t set = object_set_[relation];
  std::vector<uint32_t> few;
  if (only_graph_) {
    for (const Edge& edge : edges(context.subject, context.relation)) {
      if (is_asked_for(edge.object, context) && in_set(set, edge.object)) few.push_back(edge.object);
    }
    return few_objects(std::move(few), context);
  }
  if (context.request != nullptr) {
    Filter filter;
    filter.trie = entities_.get();
    filter.only = context.request->entities;
    const std::vector<uint32_t>& terminals = filter.only->terminals();
    filter.open = no_bits(terminals.size());
    for (size_t i = 0; i < terminals.size(); ++i) {
      if (in_set(set, terminals[i]) && allows({context.subject, context.relation, terminals[i]}, context)) {
        set_one(&filter.open, i);
      }
    }
    return filter;
  }
  Filter filter;
  filter.trie = entities_.get();
  filter.base = set == kAny ? nullptr : &sets_[set];
  filter.taken_out = objects_taken_out(context);
  close(&filter);
  return filter;
}

Filter Rules::few_objects(std::vector<uint32_t> candidates, const Context& context) const {
  std::erase_if(candidates, [&](uint32_t object) {
    return !allows({context.subject, context.relation, object}, context);
  });
  Filter filter;
  filter.trie = entities_.get();
  filter.only = std::make_shared<Subset>(entities_, candidates);
  filter.open.assign((filter.only->terminals().size() + 63) / 64, ~uint64_t{0});
  return filter;
}

/// Finds the nodes that lost their last name: from those taken out upwards, deepest first.
void Rules::close(Filter* filter) const {
  if (filter->taken_out.empty()) return;
  std::priority_queue<uint32_t> to_look_at(std::less<uint32_t>(), filter->taken_out);
  std::vector<uint32_t> dead;  // descending
  const auto is_dead = [&](uint32_t node) {
    return std::binary_search(dead.begin(), dead.end(), node, std::greater<>());
  };
  while (!to_look_at.empty()) {
    const uint32_t node = to_look_at.top();
    while (!to_look_at.empty() && to_look_at.top() == node) to_look_at.pop();
    if (entities_->is_terminal(node) && filter->holds(node)) continue;
    const auto [begin, end] = entities_->child_range(node);
    bool alive = false;
    for (uint32_t child = begin; child < end && !alive; ++child) {
      alive = (filter->base == nullptr || filter->base->reaches(child)) && !is_dead(child);
    }
    if (alive) continue;
    dead.push_back(node);
    if (node != 0) to_look_at.push(entities_->parent(node));
  }
  filter->dead.assign(dead.rbegin(), dead.rend());
}

std::shared_ptr<const Filter> Rules::filter(Slot slot, const Context& context) const {
  if (slot == Slot::kSubject) return std::make_shared<Filter>(subjects(context));
  if (slot == Slot::kRelation) return std::make_shared<Filter>(relations(context));
  return std::make_shared<Filter>(objects(context));
}

bool Rules::is_open(Slot slot, const Context& context) const {
  if (slot == Slot::kSubject) return !subjects(context).is_empty();
  return subject_is_open(context.subject, context);
}

}  // namespace obverse
