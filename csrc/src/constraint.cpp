#include "obverse/constraint.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

namespace obverse {
namespace {

void add(Position position, State* state) {
  if (std::find(state->begin(), state->end(), position) == state->end()) state->push_back(position);
}

}  // namespace

Constraint::Constraint(std::shared_ptr<const Trie> entities, std::shared_ptr<const Trie> relations,
                       Automaton automaton, const Limits& limits)
    : entities_(std::move(entities)), relations_(std::move(relations)), automaton_(std::move(automaton)) {
  require(entities_ != nullptr, "entities must be a trie, got none");
  require(relations_ != nullptr || !automaton_.has(Slot::kRelation),
          "relations must be a trie (there is a relation slot), got none");
  check_names(*entities_, "entities");
  if (relations_ != nullptr) check_names(*relations_, "relations");
  require(limits.max_triplets >= 0 && limits.max_triplets <= std::numeric_limits<int32_t>::max(),
          "max_triplets must be in [0, 2^31 - 1], got ", limits.max_triplets);
  max_triplets_ = static_cast<uint32_t>(limits.max_triplets);
  if (limits.unique || limits.types != nullptr || limits.graph != nullptr) {
    const std::vector<Slot> order{Slot::kSubject, Slot::kRelation, Slot::kObject};
    require(
        automaton_.order() == order,
        "unique, types and graph need a linearisation that writes subject, relation, object in this order");
    rules_ = std::make_shared<Rules>(entities_, relations_, limits.unique, limits.types, limits.graph);
  }
  entity_rows_ = WideRows(*entities_, vocab_size());
  if (relations_ != nullptr) relation_rows_ = WideRows(*relations_, vocab_size());
}

size_t Constraint::most_allowed(span<const Position> state) const {
  size_t count = 0;
  for (const Position position : state) {
    if (position.part == automaton_.done()) continue;
    count += Automaton::kMaxWays;
    const Slot slot = automaton_.part(position.part).slot;
    if (slot == Slot::kNone) continue;
    const auto [begin, end] = names(slot).child_range(position.index);
    count += end - begin;
  }
  return count;
}

void Constraint::check_names(const Trie& trie, const char* what) const {
  // All tokens are read, for masks and logits will be written at them: a file's own word is not enough.
  const uint32_t largest = trie.largest_token();
  require(largest < vocab_size(), what, " must hold tokens in [0, ", vocab_size(), "), got ", largest);
  require(!trie.uses(eos()), what, " must hold names without eos = ", eos(),
          ": leave it off when tokenising");
}

std::shared_ptr<const Request> Constraint::prepare(std::shared_ptr<const Subset> entities) const {
  if (rules_ != nullptr) return rules_->prepare(std::move(entities));
  require(entities->trie() == entities_, "the subset must be one of the constraint's own entities");
  auto request = std::make_shared<Request>();
  request->subjects.assign((entities->terminals().size() + 63) / 64, ~uint64_t{0});
  request->entities = std::move(entities);
  return request;
}

void Constraint::start(Memory* memory, State* state) const {
  memory->entries.clear();
  memory->written.clear();
  state->clear();
  if (remembers(*memory)) memory->entries.emplace_back();
  state->push_back(enter(automaton_.start(), 0, 0, memory));
}

Rules::Context Constraint::context(const Memory::Entry& entry, const Memory& memory) const {
  return {entry.subject, entry.relation, entry.last, memory.written, nullptr, memory.request.get()};
}

const Filter* Constraint::filter_of(Position position, const Memory& memory) const {
  return memory.entries.empty() ? nullptr : memory.entries[position.memory].filter.get();
}

/// Whether the part that `position` stands in is whole, so that what follows it may begin.
bool Constraint::at_end(Position position, const Memory& memory) const {
  if (position.part == automaton_.done()) return false;
  const Part& part = automaton_.part(position.part);
  if (part.slot == Slot::kNone) return position.index == part.tokens.size();
  if (!names(part.slot).is_terminal(position.index)) return false;
  const Filter* const filter = filter_of(position, memory);
  return filter == nullptr || filter->holds(position.index);
}

uint32_t Constraint::num_triplets(Position position, const Memory& memory) const {
  uint32_t count = position.memory;
  if (!memory.entries.empty()) {
    const uint32_t last = memory.entries[position.memory].last;
    count = last == Written::kNone ? 0 : memory.written[last].count;
  }
  return count + (automaton_.is_last(automaton_.part(position.part).slot) ? 1 : 0);
}

/// Whether a way on may be taken: one that opens a further triplet needs room for it and something to put in it.
bool Constraint::is_open(Position position, const Automaton::Edge& edge, const Memory& memory) const {
  if (edge.opens == Slot::kNone) return true;
  if (max_triplets_ > 0 && num_triplets(position, memory) >= max_triplets_) return false;
  if (rules_ == nullptr) {
    return memory.request == nullptr || edge.opens == Slot::kRelation ||
           !memory.request->entities->terminals().empty();
  }
  const Memory::Entry& entry = memory.entries[position.memory];
  Rules::Context now = context(entry, memory);
  const Fact fact{entry.subject, entry.relation, position.index};
  if (automaton_.is_last(automaton_.part(position.part).slot)) now.pending = &fact;
  return rules_->is_open(edge.opens, now);
}

/// What a reading knows once it leaves its part: its name, and the triplet where that was the last.
uint32_t Constraint::leave(Position position, Memory* memory) const {
  const Slot slot = automaton_.part(position.part).slot;
  const bool whole = automaton_.is_last(slot);
  if (memory->entries.empty()) return position.memory + (whole && max_triplets_ > 0 ? 1 : 0);
  if (slot == Slot::kNone) return position.memory;
  Memory::Entry entry = memory->entries[position.memory];
  entry.filter = nullptr;
  if (slot == Slot::kSubject) entry.subject = position.index;
  if (slot == Slot::kRelation) entry.relation = position.index;
  if (slot == Slot::kObject) entry.object = position.index;
  if (whole) {
    memory->written.push_back(
        {{entry.subject, entry.relation, entry.object}, entry.last, num_triplets(position, *memory)});
    entry.last = static_cast<uint32_t>(memory->written.size() - 1);
  }
  memory->entries.push_back(std::move(entry));
  return static_cast<uint32_t>(memory->entries.size() - 1);
}

/// The position after `taken` tokens of a literal: a whole one that leads to a slot is that slot's root.
Position Constraint::enter(uint32_t part, uint32_t taken, uint32_t kept, Memory* memory) const {
  const uint32_t slot =
      taken == automaton_.part(part).tokens.size() ? automaton_.slot_after(part) : automaton_.done();
  if (slot == automaton_.done()) return {part, taken, kept};
  if (rules_ == nullptr && memory->request == nullptr) return {slot, 0, kept};
  Memory::Entry entry = memory->entries[kept];
  const Slot kind = automaton_.part(slot).slot;
  if (rules_ != nullptr) {
    entry.filter = rules_->filter(kind, context(entry, *memory));
  } else if (kind != Slot::kRelation) {
    auto filter = std::make_shared<Filter>();
    filter->trie = entities_.get();
    filter->only = memory->request->entities;
    filter->open = memory->request->subjects;
    entry.filter = std::move(filter);
  }
  memory->entries.push_back(std::move(entry));
  return {slot, 0, static_cast<uint32_t>(memory->entries.size() - 1)};
}

/// Calls visit(token, edge or null for eos, tokens of the literal taken) for every way on but those inside a trie.
template <typename Visit>
void Constraint::for_each_single(Position position, const Memory& memory, const Visit& visit) const {
  if (position.part == automaton_.done()) return;
  const Part& part = automaton_.part(position.part);
  if (part.slot == Slot::kNone && position.index < part.tokens.size()) {
    visit(part.tokens[position.index], position.part, position.index + 1);
    return;
  }
  if (!at_end(position, memory)) return;
  if (part.can_end) visit(eos(), automaton_.done(), 0);
  for (const Automaton::Edge& edge : automaton_.edges(position.part)) {
    if (is_open(position, edge, memory)) visit(edge.token, edge.part, 1);
  }
}

void Constraint::advance(span<const Position> state, int64_t token, Memory* memory, State* next) const {
  next->clear();
  if (token < 0 || token >= vocab_size()) return;
  const auto wanted = static_cast<uint32_t>(token);
  for (const Position position : state) {
    if (position.part == automaton_.done()) continue;
    const Part& part = automaton_.part(position.part);
    if (part.slot != Slot::kNone) {
      const int64_t child = names(part.slot).step(position.index, wanted);
      const Filter* const filter = filter_of(position, *memory);
      if (child != Trie::kNone && (filter == nullptr || filter->reaches(static_cast<uint32_t>(child)))) {
        add({position.part, static_cast<uint32_t>(child), position.memory}, next);
      }
    }
    // Entering a literal may add to `memory`, so the ways on are found first.
    std::array<std::pair<uint32_t, uint32_t>, Automaton::kMaxWays> found;
    size_t count = 0;
    for_each_single(position, *memory, [&](uint32_t single, uint32_t to, uint32_t taken) {
      if (single == wanted) found[count++] = {to, taken};
    });
    for (size_t i = 0; i < count; ++i) {
      const auto [to, taken] = found[i];
      const uint32_t kept = to == position.part ? position.memory : leave(position, memory);
      add(to == automaton_.done() ? Position{to, 0, 0} : enter(to, taken, kept, memory), next);
    }
  }
}

/// Calls visit(token) for the children that the slot allows, ascending.
template <typename Visit>
void Constraint::for_each_child(Position position, const Memory& memory, const Visit& visit) const {
  const Trie& trie = names(automaton_.part(position.part).slot);
  const Filter* const filter = filter_of(position, memory);
  const auto [begin, end] = trie.child_range(position.index);
  if (filter == nullptr) {
    trie.tokens(begin, end).for_each(visit);
  } else if (filter->only == nullptr) {
    for (uint32_t child = begin; child < end; ++child) {
      if (filter->reaches(child)) visit(trie.token(child));
    }
  } else {
    const std::vector<uint32_t>& nodes = filter->only->nodes();
    auto at = static_cast<size_t>(std::lower_bound(nodes.begin(), nodes.end(), begin) - nodes.begin());
    for (; at < nodes.size() && nodes[at] < end; ++at) {
      const auto [first, last] = filter->only->run(at);
      if (any_bit(filter->open, first, last)) visit(trie.token(nodes[at]));
    }
  }
}

void Constraint::append_allowed(span<const Position> state, const Memory& memory,
                                std::vector<int32_t>* out) const {
  const auto begin = static_cast<std::ptrdiff_t>(out->size());
  bool is_sorted = true;
  const auto append = [&](uint32_t token) {
    const auto value = static_cast<int32_t>(token);
    is_sorted = is_sorted && (static_cast<std::ptrdiff_t>(out->size()) == begin || out->back() < value);
    out->push_back(value);
  };
  for (const Position position : state) {
    if (position.part == automaton_.done()) continue;
    if (automaton_.part(position.part).slot != Slot::kNone) {
      if (filter_of(position, memory) == nullptr) {
        const TokenRange tokens = names(automaton_.part(position.part).slot).children(position.index);
        const size_t at = out->size();
        is_sorted = is_sorted && static_cast<std::ptrdiff_t>(at) == begin;
        out->resize(at + tokens.size());
        int32_t* to = out->data() + at;
        tokens.for_each([&](uint32_t token) { *to++ = static_cast<int32_t>(token); });
      } else {
        for_each_child(position, memory, append);
      }
    }
    for_each_single(position, memory, [&](uint32_t single, uint32_t, uint32_t) { append(single); });
  }
  if (!is_sorted) {
    std::sort(out->begin() + begin, out->end());
    out->erase(std::unique(out->begin() + begin, out->end()), out->end());
  }
}

/// Overwrites `words` with the children's mask where one is kept for this state: one position, in a slot, at a node with
/// many children, whose filter is none or, at the root, of the kind "all but a few".
bool Constraint::copy_row(span<const Position> state, const Memory& memory, span<int32_t> words) const {
  if (state.size() != 1 || state.front().part >= automaton_.start()) return false;
  const Position position = state.front();
  const Slot slot = automaton_.part(position.part).slot;
  if (slot == Slot::kNone) return false;
  const Trie& trie = names(slot);
  const auto [begin, end] = trie.child_range(position.index);
  const Filter* const filter = filter_of(position, memory);
  if (position.index != 0 && (filter != nullptr || end - begin <= WideRows::kLeast)) return false;
  if (filter != nullptr && filter->only != nullptr) return false;
  span<const int32_t> row = (slot == Slot::kRelation ? relation_rows_ : entity_rows_).find(position.index);
  if (row.empty()) return false;
  if (filter != nullptr && filter->base != nullptr) row = filter->base->root_mask;
  std::copy(row.begin(), row.end(), words.begin());
  std::fill(words.begin() + static_cast<std::ptrdiff_t>(row.size()), words.end(), 0);
  if (filter != nullptr) {
    for (const uint32_t node : filter->dead) {
      if (node >= begin && node < end) clear_bit(words, trie.token(node));
    }
  }
  return true;
}

void Constraint::fill_bitmask(span<const Position> state, const Memory& memory, span<int32_t> words) const {
  require(words.size() == bitmask_words(vocab_size()), "bitmask must hold ", bitmask_words(vocab_size()),
          " words for vocab_size = ", vocab_size(), ", got ", words.size());
  const bool is_copied = copy_row(state, memory, words);
  if (!is_copied) std::fill(words.begin(), words.end(), 0);
  for (const Position position : state) {
    if (position.part == automaton_.done()) continue;
    if (!is_copied && automaton_.part(position.part).slot != Slot::kNone) {
      for_each_child(position, memory, [&](uint32_t token) { set_bit(words, token); });
    }
    for_each_single(position, memory, [&](uint32_t single, uint32_t, uint32_t) { set_bit(words, single); });
  }
}

std::vector<Fact> Constraint::read(span<const int32_t> tokens) const {
  Memory memory;
  memory.keeps_facts = true;
  State state, next;
  start(&memory, &state);
  bool is_cut = false;
  for (const int32_t token : tokens) {
    // The end forgets what was written, so it is read just before.
    if (token == static_cast<int32_t>(eos())) break;
    advance(state, token, &memory, &next);
    if (next.empty()) {
      is_cut = true;
      break;
    }
    state.swap(next);
  }
  const auto could_end = [&](Position at) { return automaton_.part(at.part).can_end && at_end(at, memory); };
  const auto best = is_cut ? state.end() : std::find_if(state.begin(), state.end(), could_end);
  const Position position = best == state.end() ? state.front() : *best;
  const uint32_t kept = best == state.end() ? position.memory : leave(position, &memory);
  std::vector<Fact> out;
  for (uint32_t i = memory.entries[kept].last; i != Written::kNone; i = memory.written[i].before) {
    out.push_back(memory.written[i].fact);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace obverse
