// Which token may follow, for a linearisation whose names come from catalogues.
//
// Where a name that has ended could also go on with the token that starts the next literal (a name that is a prefix of
// another; a name that shares tokens with a literal; `[r]` and `[e]` that both start with `[`), the state is the small
// set of all positions that the tokens allow: exactly the language, no greedy choice. Every position can reach the end,
// so no state is a dead end.
//
// Cost: a step is one search among a node's children a position; a mask is the children of one node (root rows are kept
// ready). Rules cost when a slot is entered, not a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/automaton.hpp"
#include "obverse/bitmask.hpp"
#include "obverse/rules.hpp"
#include "obverse/trie.hpp"
#include "obverse/wide_rows.hpp"

namespace obverse {

/// Where one reading of the tokens stands. index: trie node in a slot, tokens taken in a literal.
struct Position {
  uint32_t part;
  uint32_t index;
  uint32_t
      memory;  // under rules: which of Memory's entries; else the number of whole triplets if there is a limit
  bool operator==(const Position&) const = default;
};

/// All readings; never empty for an accepted string, in order of discovery, without repeats.
using State = std::vector<Position>;

/// What readings have written so far: grows with every name, shared by all positions of a sequence.
struct Memory {
  struct Entry {
    uint32_t subject = 0, relation = 0, object = 0;
    uint32_t last = Written::kNone;        // in written
    std::shared_ptr<const Filter> filter;  // of the slot that this reading is in
  };
  std::vector<Entry> entries;
  std::vector<Written> written;
  std::shared_ptr<const Request> request;
  bool keeps_facts = false;  // note names and facts where the constraint itself needs none
};

/// Limits on the triplets. Everything but max_triplets needs the order subject, relation, object.
struct Limits {
  int64_t max_triplets = 0;  // 0: none
  bool unique = false;
  const TypeRules* types = nullptr;
  const GraphRules* graph = nullptr;
};

/// Immutable and thread-safe; shares its tries.
class Constraint {
 public:
  /// `relations` may be null where no slot is a relation. Throws ValueError where a name holds eos or a token outside
  /// the vocabulary, or the limits don't fit.
  Constraint(std::shared_ptr<const Trie> entities, std::shared_ptr<const Trie> relations, Automaton automaton,
             const Limits& limits);

  /// The state before the first token; `memory` is emptied but for its request and keeps_facts.
  void start(Memory* memory, State* state) const;
  bool is_complete(span<const Position> state) const {
    return state.size() == 1 && state.front().part == automaton_.done();
  }
  /// Writes the state after `token` to `next` (cleared first); empty where the token is not allowed.
  void advance(span<const Position> state, int64_t token, Memory* memory, State* next) const;
  /// Appends the allowed tokens, ascending, without repeats; none after eos.
  void append_allowed(span<const Position> state, const Memory& memory, std::vector<int32_t>* out) const;
  /// Overwrites words[bitmask_words(vocab_size)]. Throws ValueError on another length.
  void fill_bitmask(span<const Position> state, const Memory& memory, span<int32_t> words) const;
  /// Hints at what the next call for this state will read: the nodes, then (in a second round) their children.
  void fetch(span<const Position> state, bool children) const {
    for (const Position position : state) {
      if (position.part >= automaton_.start()) continue;
      const Slot slot = automaton_.part(position.part).slot;
      if (slot == Slot::kNone) continue;
      if (children) names(slot).fetch_children(position.index);
      if (!children) names(slot).fetch_node(position.index);
    }
  }
  /// At least as many as are allowed, in no time: the children of the nodes that the state is at, and the literals.
  size_t most_allowed(span<const Position> state) const;
  /// The triplets of a whole or unfinished output, by one reading, up to the first token that isn't allowed. Facts that
  /// have begun but are not whole are left out.
  std::vector<Fact> read(span<const int32_t> tokens) const;
  /// Throws ValueError where the subset is not one of this constraint's entities.
  std::shared_ptr<const Request> prepare(std::shared_ptr<const Subset> entities) const;

  uint32_t vocab_size() const { return automaton_.vocab_size(); }
  uint32_t eos() const { return automaton_.eos(); }
  uint32_t max_triplets() const { return max_triplets_; }
  const Automaton& automaton() const { return automaton_; }
  const std::shared_ptr<const Trie>& entities() const { return entities_; }
  const std::shared_ptr<const Trie>& relations() const { return relations_; }
  /// Whether what may follow depends on the names written before.
  bool has_rules() const { return rules_ != nullptr; }

 private:
  const Trie& names(Slot slot) const { return slot == Slot::kRelation ? *relations_ : *entities_; }
  bool remembers(const Memory& memory) const {
    return rules_ != nullptr || memory.keeps_facts || memory.request;
  }
  void check_names(const Trie& trie, const char* what) const;
  const Filter* filter_of(Position position, const Memory& memory) const;
  bool at_end(Position position, const Memory& memory) const;
  uint32_t num_triplets(Position position, const Memory& memory) const;
  bool is_open(Position position, const Automaton::Edge& edge, const Memory& memory) const;
  uint32_t leave(Position position, Memory* memory) const;
  Position enter(uint32_t part, uint32_t taken, uint32_t kept, Memory* memory) const;
  Rules::Context context(const Memory::Entry& entry, const Memory& memory) const;
  template <typename Visit>
  void for_each_single(Position position, const Memory& memory, const Visit& visit) const;
  template <typename Visit>
  void for_each_child(Position position, const Memory& memory, const Visit& visit) const;
  bool copy_row(span<const Position> state, const Memory& memory, span<int32_t> words) const;

  std::shared_ptr<const Trie> entities_, relations_;
  Automaton automaton_;
  std::shared_ptr<const Rules> rules_;
  uint32_t max_triplets_ = 0;
  WideRows entity_rows_, relation_rows_;
};

}  // namespace obverse
