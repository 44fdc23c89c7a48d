// Which token may follow, for linearised triplet sets whose names come from two catalogues.
//
//   fully expanded      ( [s] ENTITY [r] RELATION [o] ENTITY [e] )* eos
//   subject collapsed   ( [s] ENTITY ( [r] RELATION [o] ENTITY )+ [e] )* eos
//
// A marker is a string of one or more tokens. Where a name that has ended could also go on with the token that
// starts the next marker (a name that is a prefix of another; a name that shares tokens with a marker; `[r]` and
// `[e]` that both start with `[`), the state is the small set of all positions that the tokens allow: exactly the
// language above, no greedy choice. Every position can reach the end, so no state is a dead end.
//
// Cost: a step is one binary search a position; a mask is the children of one node (root rows are kept ready).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/bitmask.hpp"
#include "obverse/trie.hpp"

namespace obverse {

enum class Form : uint8_t { kFullyExpanded, kSubjectCollapsed };

/// The part of the linearisation a position is in. A marker part is entered with its first token.
enum class Part : uint32_t {
  kBoundary,  // at the start or after an end marker
  kSubjectMarker,
  kSubject,
  kRelationMarker,
  kRelation,
  kObjectMarker,
  kObject,
  kEndMarker,
  kDone,  // after eos
};

/// Where one reading of the tokens stands. index: trie node in a name, tokens taken in a marker, else 0.
struct Position {
  Part part;
  uint32_t index;
  bool operator==(const Position&) const = default;
};

/// All readings; never empty for an accepted string, in order of discovery, without repeats.
using State = std::vector<Position>;

struct MarkerTokens {
  std::vector<int32_t> subject, relation, object, end;
};

/// Immutable and thread-safe; shares its tries.
class Constraint {
 public:
  /// Throws ValueError on an empty marker, a token (marker, eos or name) outside [0, vocab_size), and where
  /// eos is part of a marker or name.
  Constraint(std::shared_ptr<const Trie> entities, std::shared_ptr<const Trie> relations,
             MarkerTokens markers, int64_t eos, Form form, int64_t vocab_size);

  static State start() { return {{Part::kBoundary, 0}}; }
  static bool is_complete(span<const Position> state) {
    return state.size() == 1 && state.front().part == Part::kDone;
  }

  /// Writes the state after `token` to `next` (cleared first); empty where the token is not allowed.
  void advance(span<const Position> state, int64_t token, State* next) const;
  /// The state after `tokens` from the start; empty where they are not allowed.
  State replay(span<const int32_t> tokens) const;
  /// Appends the allowed tokens, ascending, without repeats; none after eos.
  void append_allowed(span<const Position> state, std::vector<int32_t>* out) const;
  /// Overwrites words[bitmask_words(vocab_size)]. Throws ValueError on another length.
  void fill_bitmask(span<const Position> state, span<int32_t> words) const;

  uint32_t vocab_size() const { return vocab_size_; }
  uint32_t eos() const { return eos_; }
  Form form() const { return form_; }

 private:
  const Trie* names(Part part) const;
  const std::vector<uint32_t>& marker(Part part) const { return markers_[static_cast<size_t>(part)]; }
  span<const Part> markers_after(Part name) const;
  Position after_marker_token(Part marker_part, uint32_t num_taken) const;
  void check_trie(const Trie& trie, const char* what) const;
  template <typename Visit>
  void visit_singles(Position position, const Visit& visit) const;

  std::shared_ptr<const Trie> entities_, relations_;
  std::vector<std::vector<uint32_t>> markers_;  // by Part; empty for parts that are not markers
  uint32_t eos_ = 0;
  Form form_;
  uint32_t vocab_size_ = 0;
  std::vector<int32_t> entity_root_, relation_root_;  // masks at the tries' roots
};

}  // namespace obverse
