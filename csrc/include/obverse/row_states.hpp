// States of rows that are known only by their tokens so far, as Hugging Face hands them over: beam search reorders
// rows between steps and says nothing.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "obverse/batch.hpp"
#include "obverse/constraint.hpp"

namespace obverse {

/// Rows of token ids, [num_rows, width], that may lie apart.
struct TokenRows {
  const int64_t* data;
  size_t num_rows;
  size_t width;
  size_t row_stride;
  span<const int64_t> row(size_t i) const { return {data + i * row_stride, width}; }
};

/// Keeps the states of the last call's rows. A row that begins with a row of the last call goes on from it: the same
/// row is tried first (one comparison of its tokens), then any other by hash; only a row of no known beginning is
/// replayed. Mutable, not thread-safe.
class RowStates {
 public:
  explicit RowStates(std::shared_ptr<const Constraint> constraint) : constraint_(std::move(constraint)) {}

  /// Only these entities may be written, from the next call of advance on, which replays every row: one subset for each
  /// group of rows that lie together (a prompt's beams), null for all entities; none at all: no limit.
  void restrict_to(span<const std::shared_ptr<const Subset>> groups);
  /// Finds every row's state. `tokens` are the generated ones: what comes before is the caller's. What follows eos
  /// (padding) is not looked at. Throws ValueError where the rows are not so many to each group.
  void advance(const TokenRows& tokens);

  /// Copies the allowed entries of each row of `scores` to `out`. With `reuse`, `out` is what the last call of select
  /// with this `slot` wrote to, and nobody has changed it: only what that call set is cleared; else the rest is set to
  /// -infinity. So a step costs what is allowed, whatever the vocabulary. Callers that can't take a result back until
  /// its successor is there keep two buffers, slots 0 and 1. A row that has ended, or left the constraint (a beam of
  /// probability zero), keeps eos alone. Throws ValueError on other shapes than the last advance's rows.
  void select(const LogitRows& scores, const LogitRows& out, size_t slot, bool reuse);
  /// The allowed tokens of row i; eos as in select.
  void append_allowed(size_t i, std::vector<int32_t>* out) const;

  size_t num_rows() const { return rows_.size(); }
  const std::shared_ptr<const Constraint>& constraint() const { return constraint_; }

 private:
  struct Row {
    std::vector<int64_t> tokens;
    State state;  // empty: not allowed
    Memory memory;
    size_t group = 0;
    uint64_t hash = 0;
  };

  const Row* beginning_of(span<const int64_t> tokens, size_t i, size_t group) const;
  void step(Row* row, int64_t token);

  std::shared_ptr<const Constraint> constraint_;
  std::vector<std::shared_ptr<const Request>> requests_;  // by group
  std::vector<Row> rows_, before_;
  std::vector<std::pair<uint64_t, uint32_t>> by_hash_;  // of before_, ascending
  size_t width_ = 0;                                    // tokens of each row of before_
  /// What the last select set in a row: these tokens, or so many that the whole row was written.
  struct Set {
    std::vector<int32_t> tokens;
    bool is_whole = false;
  };
  std::array<std::vector<Set>, 2> written_;  // by slot and row
  std::vector<int32_t> words_;
  State scratch_;
};

}  // namespace obverse
