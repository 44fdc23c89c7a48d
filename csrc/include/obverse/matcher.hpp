// One sequence's place in a constraint: a stack of states, so that steps can be taken back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/constraint.hpp"

namespace obverse {

/// Mutable, a few words a token (under rules also what it has written); copying forks it. Not thread-safe.
class Matcher {
 public:
  /// With a `subset`, only those entities may be written. Throws ValueError where it is of another trie.
  explicit Matcher(std::shared_ptr<const Constraint> constraint,
                   std::shared_ptr<const Subset> subset = nullptr);

  /// Goes on by one token; false, and nothing changes, where it is not allowed (always so after eos).
  bool accept(int64_t token);
  /// Starts again with `tokens`; false, and nothing changes, where they are not allowed.
  bool replay(span<const int32_t> tokens);
  /// Takes back the last `num_tokens`. Throws ValueError where fewer were accepted.
  void rollback(int64_t num_tokens);
  void reset();

  void append_allowed(std::vector<int32_t>* out) const { constraint_->append_allowed(state(), memory_, out); }
  void fill_bitmask(span<int32_t> words) const { constraint_->fill_bitmask(state(), memory_, words); }

  /// True once eos was accepted.
  bool is_complete() const { return constraint_->is_complete(state()); }
  size_t num_accepted() const { return steps_.size() - 1; }
  const std::shared_ptr<const Constraint>& constraint() const { return constraint_; }
  span<const Position> state() const {
    return span<const Position>(positions_).subspan(steps_.back().positions);
  }

 private:
  /// Where a step's own part begins.
  struct Step {
    size_t positions, entries, written;
  };

  std::shared_ptr<const Constraint> constraint_;
  std::vector<Position> positions_;  // states end to end
  std::vector<Step> steps_;
  Memory memory_;
  State scratch_;
};

}  // namespace obverse
