#include "obverse/automaton.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace obverse {

const char* name_of(Slot slot) {
  switch (slot) {
    case Slot::kSubject:
      return "subject";
    case Slot::kRelation:
      return "relation";
    case Slot::kObject:
      return "object";
    case Slot::kNone:
      break;
  }
  return "none";
}

Automaton::Automaton(std::vector<Part> parts, Part start, int64_t eos, int64_t vocab_size)
    : parts_(std::move(parts)) {
  require(vocab_size >= 1 && vocab_size <= std::numeric_limits<int32_t>::max(),
          "vocab_size must be in [1, 2^31 - 1], got ", vocab_size);
  require(eos >= 0 && eos < vocab_size, "eos must be a token in [0, ", vocab_size, "), got ", eos);
  require(start.slot == Slot::kNone && start.tokens.empty(), "the start must be a literal without tokens");
  require(parts_.size() < 65536, "an automaton holds at most 65535 parts, got ", parts_.size());
  vocab_size_ = static_cast<uint32_t>(vocab_size);
  eos_ = static_cast<uint32_t>(eos);
  parts_.push_back(std::move(start));
  for (uint32_t i = 0; i < parts_.size(); ++i) check_part(i);
  find_order();
  find_edges();
}

bool Automaton::has(Slot slot) const { return std::find(order_.begin(), order_.end(), slot) != order_.end(); }

void Automaton::check_part(uint32_t i) const {
  const Part& part = parts_[i];
  const bool is_start = i == start();
  require(part.slot == Slot::kNone || part.tokens.empty(), "parts[", i,
          "] must be a literal or a slot, got both");
  require(is_start || part.slot != Slot::kNone || !part.tokens.empty(), "parts[", i,
          "] must hold at least one token, got none");
  for (const uint32_t token : part.tokens) {
    require(token < vocab_size_, "parts[", i, "] must hold tokens in [0, ", vocab_size_, "), got ", token);
    require(token != eos_, "parts[", i, "] must not contain eos = ", eos_);
  }
  size_t slots = 0;
  for (const uint32_t next : part.next) {
    require(next < start(), "parts[", i, "] must lead to parts in [0, ", start(), "), got ", next);
    slots += parts_[next].slot != Slot::kNone ? 1 : 0;
  }
  require(part.next.size() < kMaxWays, "parts[", i, "] must lead to at most ", kMaxWays - 1, " parts, got ",
          part.next.size());
  require(part.can_end || !part.next.empty(), "parts[", i, "] must lead somewhere or end, got neither");
  if (part.slot != Slot::kNone) {
    require(slots == 0, "parts[", i, "], a slot, must lead to literals, got a slot right after it");
  } else {
    require(slots == 0 || (part.next.size() == 1 && !part.can_end), "parts[", i,
            "], a literal, must lead to one slot or to literals and the end, got both");
  }
}

/// The slot that a literal must come to, kNone where it may also end. Throws where it could come to two.
Slot Automaton::leads_to(uint32_t part, size_t depth) const {
  require(depth <= parts_.size(), "parts[", part, "] goes round in literals without a slot or an end");
  const Part& at = parts_[part];
  if (at.slot != Slot::kNone) return at.slot;
  Slot found = Slot::kNone;
  for (size_t k = 0; k < at.next.size(); ++k) {
    const Slot next = leads_to(at.next[k], depth + 1);
    if (at.can_end) continue;
    require(k == 0 || next == found, "parts[", part, "] must lead to one kind of slot, got ", name_of(found),
            " and ", name_of(next));
    found = next;
  }
  return found;
}

/// Follows the first way from the start until a slot comes again or nothing follows.
void Automaton::find_order() {
  uint32_t at = start();
  for (size_t steps = 0; steps <= 2 * parts_.size() && !parts_[at].next.empty(); ++steps) {
    at = parts_[at].next.front();
    const Slot slot = parts_[at].slot;
    if (slot == Slot::kNone) continue;
    if (has(slot)) break;
    order_.push_back(slot);
  }
  require(!order_.empty(), "an automaton must have a slot, got none");
  for (uint32_t i = 0; i < parts_.size(); ++i) {
    const auto it = std::find(order_.begin(), order_.end(), parts_[i].slot);
    if (parts_[i].slot == Slot::kNone) continue;
    require(it != order_.end(), "parts[", i, "]: slot ", name_of(parts_[i].slot), " can't be reached");
    if (it + 1 == order_.end()) continue;
    require(!parts_[i].can_end, "parts[", i, "] must not end before the triplet's ", name_of(order_.back()));
    for (const uint32_t next : parts_[i].next) {
      require(leads_to(next, 0) == *(it + 1) && !parts_[next].can_end &&
                  parts_[parts_[next].next.front()].slot != Slot::kNone,
              "parts[", i, "] must lead through one literal to ", name_of(*(it + 1)));
    }
  }
}

void Automaton::find_edges() {
  edges_.resize(parts_.size());
  slot_after_.assign(parts_.size(), done());
  for (uint32_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    const bool starts_anew = part.slot == Slot::kNone || is_last(part.slot);
    for (const uint32_t next : part.next) {
      if (parts_[next].slot != Slot::kNone) {
        slot_after_[i] = next;
        continue;
      }
      edges_[i].push_back({next, parts_[next].tokens.front(), starts_anew ? leads_to(next, 0) : Slot::kNone});
    }
  }
}

}  // namespace obverse
