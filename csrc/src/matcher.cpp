#include "obverse/matcher.hpp"

#include <utility>

namespace obverse {

Matcher::Matcher(std::shared_ptr<const Constraint> constraint) : constraint_(std::move(constraint)) {
  reset();
}

void Matcher::reset() {
  positions_ = Constraint::start();
  starts_.assign(1, 0);
}

bool Matcher::accept(int64_t token) {
  constraint_->advance(state(), token, &scratch_);
  if (scratch_.empty()) return false;
  starts_.push_back(positions_.size());
  positions_.insert(positions_.end(), scratch_.begin(), scratch_.end());
  return true;
}

bool Matcher::replay(span<const int32_t> tokens) {
  Matcher fresh(constraint_);
  for (const int32_t token : tokens) {
    if (!fresh.accept(token)) return false;
  }
  *this = std::move(fresh);
  return true;
}

void Matcher::rollback(int64_t num_tokens) {
  require(num_tokens >= 0 && static_cast<uint64_t>(num_tokens) <= num_accepted(), "rollback must be in [0, ",
          num_accepted(), "] tokens, got ", num_tokens);
  if (num_tokens == 0) return;
  const size_t kept = starts_.size() - static_cast<size_t>(num_tokens);
  positions_.resize(starts_[kept]);
  starts_.resize(kept);
}

}  // namespace obverse
