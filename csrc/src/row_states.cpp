#include "obverse/row_states.hpp"

#include <algorithm>
#include <limits>

#include "obverse/random.hpp"

namespace obverse {
namespace {

uint64_t extend(uint64_t hash, int64_t token) { return mix64(hash ^ static_cast<uint64_t>(token)) + 1; }

}  // namespace

void RowStates::restrict_to(span<const std::shared_ptr<const Subset>> groups) {
  std::vector<std::shared_ptr<const Request>> requests;
  for (const auto& entities : groups)
    requests.push_back(entities == nullptr ? nullptr : constraint_->prepare(entities));
  requests_ = std::move(requests);
  rows_.clear();
}

/// The row of the last call that `tokens` begins with, or null.
const RowStates::Row* RowStates::beginning_of(span<const int64_t> tokens, size_t i, size_t group) const {
  if (before_.empty() || tokens.size() < width_) return nullptr;
  const span<const int64_t> begin = tokens.first(width_);
  const auto is_it = [&](const Row& row) {
    return row.group == group && std::equal(begin.begin(), begin.end(), row.tokens.begin());
  };
  if (i < before_.size() && is_it(before_[i])) return &before_[i];
  uint64_t hash = group;
  for (const int64_t token : begin) hash = extend(hash, token);
  auto it = std::lower_bound(by_hash_.begin(), by_hash_.end(), std::pair<uint64_t, uint32_t>{hash, 0});
  for (; it != by_hash_.end() && it->first == hash; ++it) {
    if (is_it(before_[it->second])) return &before_[it->second];
  }
  return nullptr;
}

void RowStates::step(Row* row, int64_t token) {
  row->tokens.push_back(token);
  row->hash = extend(row->hash, token);
  if (row->state.empty() || constraint_->is_complete(row->state)) return;
  constraint_->advance(row->state, token, &row->memory, &scratch_);
  row->state.swap(scratch_);
}

void RowStates::advance(const TokenRows& tokens) {
  const size_t groups = std::max<size_t>(1, requests_.size());
  require(tokens.num_rows % groups == 0, "expected as many rows for each of ", groups, " groups, got ",
          tokens.num_rows, " rows");
  rows_.swap(before_);
  width_ = before_.empty() ? 0 : before_.front().tokens.size();
  by_hash_.clear();
  for (uint32_t i = 0; i < before_.size(); ++i) by_hash_.push_back({before_[i].hash, i});
  std::sort(by_hash_.begin(), by_hash_.end());
  rows_.resize(tokens.num_rows);
  std::vector<const Row*> begins(rows_.size());
  std::vector<uint32_t> uses(before_.size(), 0);
  for (size_t i = 0; i < rows_.size(); ++i) {
    begins[i] = beginning_of(tokens.row(i), i, i * groups / rows_.size());
    if (begins[i] != nullptr) ++uses[static_cast<size_t>(begins[i] - before_.data())];
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    const span<const int64_t> wanted = tokens.row(i);
    Row& row = rows_[i];
    if (begins[i] != nullptr) {
      const auto from = static_cast<size_t>(begins[i] - before_.data());
      // The last row that goes on from another may have it; those before it need copies.
      if (--uses[from] == 0) {
        std::swap(row, before_[from]);
      } else {
        row = before_[from];
      }
    } else {
      const size_t group = i * groups / rows_.size();
      row.tokens.clear();
      row.hash = row.group = group;
      row.memory.request = requests_.empty() ? nullptr : requests_[group];
      constraint_->start(&row.memory, &row.state);
    }
    for (size_t at = row.tokens.size(); at < wanted.size(); ++at) step(&row, wanted[at]);
  }
}

void RowStates::append_allowed(size_t i, std::vector<int32_t>* out) const {
  require(i < rows_.size(), "row must be in [0, ", rows_.size(), "), got ", i);
  const size_t before = out->size();
  constraint_->append_allowed(rows_[i].state, rows_[i].memory, out);
  if (out->size() == before) out->push_back(static_cast<int32_t>(constraint_->eos()));
}

void RowStates::select(const LogitRows& scores, const LogitRows& out, size_t slot, bool reuse) {
  require(slot < written_.size(), "slot must be 0 or 1, got ", slot);
  require(scores.num_rows == rows_.size() && out.num_rows == rows_.size(), "scores must have the ",
          rows_.size(), " rows of the last advance, got ", scores.num_rows, " and ", out.num_rows);
  require(scores.num_columns >= constraint_->vocab_size() && out.num_columns == scores.num_columns,
          "scores must have at least vocab_size = ", constraint_->vocab_size(), " columns, got ",
          scores.num_columns, " and ", out.num_columns);
  std::vector<Set>& written = written_[slot];
  reuse = reuse && written.size() == rows_.size();
  written.resize(rows_.size());
  words_.resize(bitmask_words(constraint_->vocab_size()));
  for (const bool children : {false, true}) {
    for (const Row& row : rows_) constraint_->fetch(row.state, children);
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    const span<const float> from = scores.row(i);
    const span<float> to = out.row(i);
    Set& set = written[i];
    if (!rows_[i].state.empty() &&
        is_many(constraint_->most_allowed(rows_[i].state), constraint_->vocab_size())) {
      constraint_->fill_bitmask(rows_[i].state, rows_[i].memory, words_);
      blend_row(words_, from, to);
      set.is_whole = true;
      continue;
    }
    if (reuse && !set.is_whole) {
      for (const int32_t token : set.tokens)
        to[static_cast<size_t>(token)] = -std::numeric_limits<float>::infinity();
    } else {
      std::fill(to.begin(), to.end(), -std::numeric_limits<float>::infinity());
    }
    set.is_whole = false;
    set.tokens.clear();
    append_allowed(i, &set.tokens);
    for (const int32_t token : set.tokens) to[static_cast<size_t>(token)] = from[static_cast<size_t>(token)];
  }
}

}  // namespace obverse
