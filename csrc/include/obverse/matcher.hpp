// One sequence's place in a constraint: a stack of states, so that steps can be taken back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/constraint.hpp"

namespace obverse {

/// Mutable, a few words a token; copying forks it. Not thread-safe.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const Constraint> constraint);

  /// Goes on by one token; false, and nothing changes, where it is not allowed (always so after eos).
  bool accept(int64_t token);
  /// Starts again with `tokens`; false, and nothing changes, where they are not allowed.
  bool replay(span<const int32_t> tokens);
  /// Takes back the last `num_tokens`. Throws ValueError where fewer were accepted.
  void rollback(int64_t num_tokens);
  void reset();

  void append_allowed(std::vector<int32_t>* out) const { constraint_->append_allowed(state(), out); }
  void fill_bitmask(span<int32_t> words) const { constraint_->fill_bitmask(state(), words); }

  /// True once eos was accepted.
  bool is_complete() const { return Constraint::is_complete(state()); }
  size_t num_accepted() const { return starts_.size() - 1; }
  const std::shared_ptr<const Constraint>& constraint() const { return constraint_; }
  span<const Position> state() const { return span<const Position>(positions_).subspan(starts_.back()); }

 private:
  std::shared_ptr<const Constraint> constraint_;
  std::vector<Position> positions_;  // states end to end
  std::vector<size_t> starts_;       // of each state
  State scratch_;
};

}  // namespace obverse
