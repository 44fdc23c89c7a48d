#include "obverse/constraint.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

namespace obverse {
namespace {

constexpr std::array<Part, 1> kAfterSubject{Part::kRelationMarker};
constexpr std::array<Part, 1> kAfterRelation{Part::kObjectMarker};
constexpr std::array<Part, 1> kAfterObjectExpanded{Part::kEndMarker};
constexpr std::array<Part, 2> kAfterObjectCollapsed{Part::kRelationMarker, Part::kEndMarker};

void add(Position position, State* state) {
  if (std::find(state->begin(), state->end(), position) == state->end()) state->push_back(position);
}

uint32_t checked_token(int64_t token, int64_t vocab_size, const char* what) {
  require(token >= 0 && token < vocab_size, what, " must be a token in [0, ", vocab_size, "), got ", token);
  return static_cast<uint32_t>(token);
}

std::vector<uint32_t> checked_marker(const std::vector<int32_t>& tokens, int64_t eos, int64_t vocab_size,
                                     const char* what) {
  require(!tokens.empty(), what, " must hold at least one token, got none");
  std::vector<uint32_t> out;
  for (const int32_t token : tokens) {
    out.push_back(checked_token(token, vocab_size, what));
    require(token != eos, what, " must not contain eos = ", eos);
  }
  return out;
}

std::vector<int32_t> root_mask(const Trie& trie, uint32_t vocab_size) {
  std::vector<int32_t> words(bitmask_words(vocab_size), 0);
  for (const uint32_t token : trie.children(0)) set_bit(words, token);
  return words;
}

}  // namespace

Constraint::Constraint(std::shared_ptr<const Trie> entities, std::shared_ptr<const Trie> relations,
                       MarkerTokens markers, int64_t eos, Form form, int64_t vocab_size)
    : entities_(std::move(entities)), relations_(std::move(relations)), markers_(9), form_(form) {
  require(vocab_size >= 1 && vocab_size <= std::numeric_limits<int32_t>::max(),
          "vocab_size must be in [1, 2^31 - 1], got ", vocab_size);
  vocab_size_ = static_cast<uint32_t>(vocab_size);
  eos_ = checked_token(eos, vocab_size, "eos");
  const auto set = [&](Part part, const std::vector<int32_t>& tokens, const char* what) {
    markers_[static_cast<size_t>(part)] = checked_marker(tokens, eos, vocab_size, what);
  };
  set(Part::kSubjectMarker, markers.subject, "subject_marker");
  set(Part::kRelationMarker, markers.relation, "relation_marker");
  set(Part::kObjectMarker, markers.object, "object_marker");
  set(Part::kEndMarker, markers.end, "end_marker");
  check_trie(*entities_, "entities");
  check_trie(*relations_, "relations");
  entity_root_ = root_mask(*entities_, vocab_size_);
  relation_root_ = root_mask(*relations_, vocab_size_);
}

void Constraint::check_trie(const Trie& trie, const char* what) const {
  for (const uint32_t token : trie.tokens().subspan(1)) {
    require(token < vocab_size_, what, " must hold tokens in [0, ", vocab_size_, "), got ", token);
    require(token != eos_, what, " must hold names without eos = ", eos_, ": leave it off when tokenising");
  }
}

const Trie* Constraint::names(Part part) const {
  if (part == Part::kSubject || part == Part::kObject) return entities_.get();
  return part == Part::kRelation ? relations_.get() : nullptr;
}

span<const Part> Constraint::markers_after(Part name) const {
  if (name == Part::kSubject) return kAfterSubject;
  if (name == Part::kRelation) return kAfterRelation;
  if (form_ == Form::kFullyExpanded) return kAfterObjectExpanded;
  return kAfterObjectCollapsed;
}

/// The position once `num_taken` tokens of a marker are in: inside it, or at the start of what follows it.
Position Constraint::after_marker_token(Part marker_part, uint32_t num_taken) const {
  if (num_taken < marker(marker_part).size()) return {marker_part, num_taken};
  if (marker_part == Part::kEndMarker) return {Part::kBoundary, 0};
  return {static_cast<Part>(static_cast<uint32_t>(marker_part) + 1), 0};
}

/// Calls visit(token, next position) for every way on from `position` that is not a step inside a trie.
template <typename Visit>
void Constraint::visit_singles(Position position, const Visit& visit) const {
  switch (position.part) {
    case Part::kBoundary:
      visit(eos_, Position{Part::kDone, 0});
      visit(marker(Part::kSubjectMarker)[0], after_marker_token(Part::kSubjectMarker, 1));
      return;
    case Part::kSubjectMarker:
    case Part::kRelationMarker:
    case Part::kObjectMarker:
    case Part::kEndMarker:
      visit(marker(position.part)[position.index], after_marker_token(position.part, position.index + 1));
      return;
    case Part::kSubject:
    case Part::kRelation:
    case Part::kObject:
      if (!names(position.part)->is_terminal(position.index)) return;
      for (const Part next : markers_after(position.part))
        visit(marker(next)[0], after_marker_token(next, 1));
      return;
    case Part::kDone:
      return;
  }
}

void Constraint::advance(span<const Position> state, int64_t token, State* next) const {
  next->clear();
  if (token < 0 || token >= vocab_size_) return;
  const auto wanted = static_cast<uint32_t>(token);
  for (const Position position : state) {
    if (const Trie* const trie = names(position.part)) {
      const int64_t child = trie->step(position.index, wanted);
      if (child != Trie::kNone) add({position.part, static_cast<uint32_t>(child)}, next);
    }
    visit_singles(position, [&](uint32_t single, Position after) {
      if (single == wanted) add(after, next);
    });
  }
}

State Constraint::replay(span<const int32_t> tokens) const {
  State state = start();
  State next;
  for (const int32_t token : tokens) {
    advance(state, token, &next);
    if (next.empty()) return {};
    state.swap(next);
  }
  return state;
}

void Constraint::append_allowed(span<const Position> state, std::vector<int32_t>* out) const {
  const auto begin = static_cast<std::ptrdiff_t>(out->size());
  bool is_sorted = true;
  for (const Position position : state) {
    const auto before = out->size();
    if (const Trie* const trie = names(position.part)) {
      const span<const uint32_t> children = trie->children(position.index);
      out->insert(out->end(), children.begin(), children.end());
    }
    const auto after_children = out->size();
    visit_singles(position, [&](uint32_t single, Position) { out->push_back(static_cast<int32_t>(single)); });
    const bool has_singles = out->size() > after_children && out->size() - before > 1;
    is_sorted = is_sorted && !has_singles && before == static_cast<size_t>(begin);
  }
  if (!is_sorted) {
    std::sort(out->begin() + begin, out->end());
    out->erase(std::unique(out->begin() + begin, out->end()), out->end());
  }
}

void Constraint::fill_bitmask(span<const Position> state, span<int32_t> words) const {
  require(words.size() == bitmask_words(vocab_size_), "bitmask must hold ", bitmask_words(vocab_size_),
          " words for vocab_size = ", vocab_size_, ", got ", words.size());
  std::fill(words.begin(), words.end(), 0);
  for (const Position position : state) {
    const Trie* const trie = names(position.part);
    if (trie != nullptr && position.index == 0) {
      const std::vector<int32_t>& row = trie == entities_.get() ? entity_root_ : relation_root_;
      for (size_t w = 0; w < words.size(); ++w) words[w] |= row[w];
    } else if (trie != nullptr) {
      for (const uint32_t token : trie->children(position.index)) set_bit(words, token);
    }
    visit_singles(position, [&](uint32_t single, Position) { set_bit(words, single); });
  }
}

}  // namespace obverse
