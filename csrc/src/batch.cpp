#include "obverse/batch.hpp"

#include <algorithm>
#include <limits>

namespace obverse {
namespace {

void check_rows(span<Matcher* const> matchers, const LogitRows& logits) {
  require(matchers.size() == logits.num_rows, "expected one matcher a row of logits, ", logits.num_rows,
          ", got ", matchers.size());
  for (size_t i = 0; i < matchers.size(); ++i) {
    require(logits.num_columns >= matchers[i]->constraint()->vocab_size(),
            "logits must have at least vocab_size = ", matchers[i]->constraint()->vocab_size(),
            " columns, got ", logits.num_columns);
  }
}

/// What a row may go on with, at least eos.
void list_allowed(const Matcher& matcher, std::vector<int32_t>* allowed) {
  allowed->clear();
  matcher.append_allowed(allowed);
  if (allowed->empty()) allowed->push_back(static_cast<int32_t>(matcher.constraint()->eos()));
}

/// Thirty-two entries a word; compiled for the instruction sets that have a masked move, chosen when first called.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void blend_words(const int32_t* words, size_t num_words, const float* scores, float* out) {
  constexpr float kOff = -std::numeric_limits<float>::infinity();
  for (size_t w = 0; w < num_words; ++w) {
    const auto bits = static_cast<uint32_t>(words[w]);
    const float* const from = scores + w * 32;
    float* const to = out + w * 32;
    for (uint32_t k = 0; k < 32; ++k) to[k] = ((bits >> k) & 1U) != 0 ? from[k] : kOff;
  }
}

/// Lets all rows wait for memory together.
void fetch_rows(span<Matcher* const> matchers) {
  for (const bool children : {false, true}) {
    for (const Matcher* matcher : matchers) matcher->constraint()->fetch(matcher->state(), children);
  }
}

}  // namespace

void blend_row(span<const int32_t> words, span<const float> scores, span<float> out) {
  const size_t whole = std::min(words.size(), out.size() / 32);
  blend_words(words.data(), whole, scores.data(), out.data());
  for (size_t t = whole * 32; t < out.size(); ++t) {
    const bool is_set =
        t / 32 < words.size() && ((static_cast<uint32_t>(words[t / 32]) >> (t % 32)) & 1U) != 0;
    out[t] = is_set ? scores[t] : -std::numeric_limits<float>::infinity();
  }
}

void accept_batch(span<Matcher* const> matchers, span<const int32_t> tokens) {
  require(tokens.size() == matchers.size(), "expected one token a matcher, ", matchers.size(), ", got ",
          tokens.size());
  for (size_t i = 0; i < matchers.size(); ++i) {
    require(matchers[i]->accept(tokens[i]), "row ", i, ": expected one of the allowed tokens, got ",
            tokens[i]);
  }
}

void fill_bitmask_batch(span<Matcher* const> matchers, span<int32_t> words) {
  if (matchers.empty()) return;
  const size_t width = words.size() / matchers.size();
  require(width * matchers.size() == words.size(), "bitmask must hold a row a matcher, ", matchers.size(),
          ", got ", words.size(), " words");
  fetch_rows(matchers);
  for (size_t i = 0; i < matchers.size(); ++i) matchers[i]->fill_bitmask(words.subspan(i * width, width));
}

MaskRows::MaskRows(size_t num_rows, size_t vocab_size)
    : vocab_size_(vocab_size),
      width_(bitmask_words(vocab_size)),
      words_(num_rows * width_, 0),
      written_(num_rows) {}

void MaskRows::fill(span<Matcher* const> matchers) {
  require(matchers.size() == written_.size(), "expected one matcher a row, ", written_.size(), ", got ",
          matchers.size());
  for (const Matcher* matcher : matchers) {
    require(matcher->constraint()->vocab_size() == vocab_size_, "expected constraints over ", vocab_size_,
            " tokens, got ", matcher->constraint()->vocab_size());
  }
  fetch_rows(matchers);
  for (size_t i = 0; i < matchers.size(); ++i) {
    const span<int32_t> row = span<int32_t>(words_).subspan(i * width_, width_);
    Written& written = written_[i];
    // Writing a list and clearing it again costs several words an entry.
    if (matchers[i]->constraint()->most_allowed(matchers[i]->state()) > width_ / 4) {
      matchers[i]->fill_bitmask(row);
      written.is_whole = true;
      continue;
    }
    if (written.is_whole) std::fill(row.begin(), row.end(), 0);
    if (!written.is_whole) {
      for (const int32_t token : written.tokens) row[static_cast<size_t>(token) / kTokensPerWord] = 0;
    }
    written.is_whole = false;
    written.tokens.clear();
    matchers[i]->append_allowed(&written.tokens);
    for (const int32_t token : written.tokens) set_bit(row, static_cast<uint32_t>(token));
  }
}

void mask_logits(span<Matcher* const> matchers, const LogitRows& logits) {
  check_rows(matchers, logits);
  fetch_rows(matchers);
  std::vector<int32_t> allowed, words;
  std::vector<float> kept;
  for (size_t i = 0; i < matchers.size(); ++i) {
    const span<float> row = logits.row(i);
    const Matcher& matcher = *matchers[i];
    if (is_many(matcher.constraint()->most_allowed(matcher.state()), matcher.constraint()->vocab_size())) {
      words.resize(bitmask_words(matcher.constraint()->vocab_size()));
      matcher.fill_bitmask(words);
      blend_row(words, row, row);
      continue;
    }
    list_allowed(matcher, &allowed);
    kept.clear();
    for (const int32_t token : allowed) kept.push_back(row[static_cast<size_t>(token)]);
    std::fill(row.begin(), row.end(), -std::numeric_limits<float>::infinity());
    for (size_t k = 0; k < allowed.size(); ++k) row[static_cast<size_t>(allowed[k])] = kept[k];
  }
}

void argmax_allowed(span<Matcher* const> matchers, const LogitRows& logits, span<int32_t> tokens) {
  check_rows(matchers, logits);
  require(tokens.size() == matchers.size(), "expected room for one token a matcher, ", matchers.size(),
          ", got ", tokens.size());
  std::vector<int32_t> allowed;
  for (size_t i = 0; i < matchers.size(); ++i) {
    list_allowed(*matchers[i], &allowed);
    const span<const float> row = logits.row(i);
    int32_t best = allowed.front();
    for (const int32_t token : allowed) {
      const float value = row[static_cast<size_t>(token)];
      const float against = row[static_cast<size_t>(best)];
      if (value > against || (against != against && value == value)) best = token;
    }
    tokens[i] = best;
  }
}

}  // namespace obverse
