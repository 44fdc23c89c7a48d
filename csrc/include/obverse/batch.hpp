// Many rows in one call: nothing per row crosses the language boundary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "obverse/constraint.hpp"
#include "obverse/matcher.hpp"

namespace obverse {

/// Lists end to end: row i is tokens[offsets[i] .. offsets[i + 1]).
struct TokenLists {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets{0};
};

/// For each row of generated tokens, replayed from the start, what may follow: ascending; empty after eos and
/// where the row itself is not allowed.
TokenLists allowed_batch(const Constraint& constraint, const Ragged<int32_t>& rows);

/// Rows of float32 logits that may lie apart.
struct LogitRows {
  float* data;
  size_t num_rows;
  size_t num_columns;
  size_t row_stride;  // floats between row starts
};

/// Sets every entry but the allowed ones to -infinity, in place, one pass a row; columns past the vocabulary
/// (padded embeddings) are disallowed. A complete row keeps eos alone, so that its softmax is defined.
/// Throws ValueError, before any write, unless there is one matcher a row, all of this constraint, and
/// num_columns >= vocab_size.
void mask_logits(const Constraint& constraint, span<const Matcher* const> matchers, const LogitRows& logits);

}  // namespace obverse
