// What a slot may hold, given what stands before it.
#include "obverse/rules.hpp"

#include <algorithm>
#include <queue>

#include "bits.hpp"

namespace obverse {

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
      if (at < filter.only->terminals().size()) clear_one(&filter.open, at);
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
