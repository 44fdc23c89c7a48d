// Many rows in one call: nothing per row crosses the language boundary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "obverse/constraint.hpp"
#include "obverse/matcher.hpp"

namespace obverse {

/// Rows of float32 that may lie apart.
struct LogitRows {
  float* data;
  size_t num_rows;
  size_t num_columns;
  size_t row_stride;  // floats between row starts
  span<float> row(size_t i) const { return {data + i * row_stride, num_columns}; }
};

/// out[t] = scores[t] where bit t of `words` is set, else -infinity; what is past the words is -infinity. In one pass:
/// for rows of which so much is allowed that most cache lines are touched anyway. `out` may be `scores`.
void blend_row(span<const int32_t> words, span<const float> scores, span<float> out);

/// Goes on by a token a row. Throws ValueError on another number of tokens, or, with the row's number, where a token
/// isn't allowed; rows before that one have gone on.
void accept_batch(span<Matcher* const> matchers, span<const int32_t> tokens);

/// Overwrites a packed mask a row, [rows, bitmask_words(vocab_size)] end to end. Throws ValueError on another size.
void fill_bitmask_batch(span<Matcher* const> matchers, span<int32_t> words);

/// Packed masks of its own that remember what was set: filling clears that and nothing else, so that a step costs what is
/// allowed, whatever the vocabulary. Mutable, not thread-safe.
class MaskRows {
 public:
  MaskRows(size_t num_rows, size_t vocab_size);
  /// [num_rows, bitmask_words(vocab_size)] end to end; readers must not write.
  span<const int32_t> words() const { return words_; }
  size_t num_rows() const { return written_.size(); }
  size_t width() const { return width_; }
  /// Row i says what matcher i may accept. Throws ValueError on another number of matchers or another vocabulary.
  void fill(span<Matcher* const> matchers);

 private:
  struct Written {
    std::vector<int32_t> tokens;
    bool is_whole = false;  // too many to list
  };
  size_t vocab_size_, width_;
  std::vector<int32_t> words_;
  std::vector<Written> written_;
};

/// Sets every entry but the allowed ones to -infinity, in place, one pass a row; columns past the vocabulary
/// (padded embeddings) are disallowed. A complete row keeps eos alone, so that its softmax is defined.
/// Throws ValueError, before any write, unless there is one matcher a row and num_columns >= vocab_size.
void mask_logits(span<Matcher* const> matchers, const LogitRows& logits);

/// The likeliest allowed token of each row, the first of equals; eos for a complete row. Reads the allowed entries
/// alone. A NaN is never chosen unless all are. Throws as mask_logits does.
void argmax_allowed(span<Matcher* const> matchers, const LogitRows& logits, span<int32_t> tokens);

}  // namespace obverse
