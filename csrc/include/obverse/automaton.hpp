// What surrounds the names: a linearisation as parts, each a literal (its tokens) or a slot (a name goes here).
//
//   fully expanded      ( [s] SUBJECT [r] RELATION [o] OBJECT [e] )* eos
//   subject collapsed   ( [s] SUBJECT ( [r] RELATION [o] OBJECT )+ [e] )* eos
//
// and whatever else is said by parts, their successors, and where the end-of-sequence token may stand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "obverse/span.hpp"

namespace obverse {

enum class Slot : uint8_t { kNone, kSubject, kRelation, kObject };

const char* name_of(Slot slot);

struct Part {
  Slot slot = Slot::kNone;
  std::vector<uint32_t> tokens;  // of a literal; a slot has none
  std::vector<uint32_t> next;    // the parts that may follow
  bool can_end = false;          // whether eos may follow
};

/// Immutable. Part size() is the start: a literal without tokens. Part size() + 1 is where eos leads.
class Automaton {
 public:
  /// Most ways on from one part, the end included.
  static constexpr size_t kMaxWays = 8;
  /// A way from a part's end into another part.
  struct Edge {
    uint32_t part;
    uint32_t token;  // the literal's first
    Slot
        opens;  // the slot that it must lead to if it starts a further triplet (or a further fact of a subject)
  };

  /// Throws ValueError, with the part's number, unless: literals hold tokens in [0, vocab_size) without eos; a literal
  /// (and the start) leads either to one slot or to literals and the end; a slot leads to literals and the end; the
  /// slots of a triplet stand in one order, each once; and no literal can lead on to two different slots.
  Automaton(std::vector<Part> parts, Part start, int64_t eos, int64_t vocab_size);

  uint32_t start() const { return static_cast<uint32_t>(parts_.size() - 1); }
  uint32_t done() const { return static_cast<uint32_t>(parts_.size()); }
  const Part& part(uint32_t i) const { return parts_[i]; }
  /// Ways on from the part's end, but for eos and for the one from a literal into a slot.
  span<const Edge> edges(uint32_t part) const { return edges_[part]; }
  /// The slot part that a whole literal leads to, or done() where it leads to literals.
  uint32_t slot_after(uint32_t literal) const { return slot_after_[literal]; }
  uint32_t eos() const { return eos_; }
  uint32_t vocab_size() const { return vocab_size_; }
  /// The slots of one triplet in the order they are written, one to three.
  const std::vector<Slot>& order() const { return order_; }
  bool is_last(Slot slot) const { return slot == order_.back(); }
  bool has(Slot slot) const;

 private:
  void check_part(uint32_t i) const;
  void find_order();
  void find_edges();
  Slot leads_to(uint32_t part, size_t depth) const;

  std::vector<Part> parts_;  // the start last
  std::vector<std::vector<Edge>> edges_;
  std::vector<uint32_t> slot_after_;
  std::vector<Slot> order_;
  uint32_t eos_ = 0;
  uint32_t vocab_size_ = 0;
};

}  // namespace obverse
