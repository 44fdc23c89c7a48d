#include "obverse/matcher.hpp"

#include <utility>

namespace obverse {

Matcher::Matcher(std::shared_ptr<const Constraint> constraint, std::shared_ptr<const Subset> subset)
    : constraint_(std::move(constraint)) {
  if (subset != nullptr) memory_.request = constraint_->prepare(std::move(subset));
  reset();
}

void Matcher::reset() {
  constraint_->start(&memory_, &scratch_);
  positions_.assign(scratch_.begin(), scratch_.end());
  steps_.assign(1, {0, memory_.entries.size(), memory_.written.size()});
}

bool Matcher::accept(int64_t token) {
  constraint_->advance(state(), token, &memory_, &scratch_);
  if (scratch_.empty()) return false;
  steps_.push_back({positions_.size(), memory_.entries.size(), memory_.written.size()});
  positions_.insert(positions_.end(), scratch_.begin(), scratch_.end());
  return true;
}

bool Matcher::replay(span<const int32_t> tokens) {
  Matcher fresh(*this);
  fresh.reset();
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
  const size_t kept = steps_.size() - static_cast<size_t>(num_tokens);
  positions_.resize(steps_[kept].positions);
  steps_.resize(kept);
  memory_.entries.resize(steps_.back().entries);
  memory_.written.resize(steps_.back().written);
}

}  // namespace obverse
