// Packed token sets: bit (t % 32) of word (t / 32) is token t; bits past the vocabulary are zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "obverse/span.hpp"

namespace obverse {

constexpr size_t kTokensPerWord = 32;

/// Words of a mask over `vocab_size` tokens.
constexpr size_t bitmask_words(size_t vocab_size) {
  return (vocab_size + kTokensPerWord - 1) / kTokensPerWord;
}

/// Whether so many of a row of `vocab_size` floats are allowed that one pass over it is cheaper than a list: sixteen lie
/// in a cache line, so from one in sixteen on a list touches them all.
constexpr bool is_many(size_t allowed, size_t vocab_size) { return allowed > vocab_size / 16; }

inline void set_bit(span<int32_t> words, uint32_t token) {
  auto& word = words[token / kTokensPerWord];
  word = static_cast<int32_t>(static_cast<uint32_t>(word) | (1U << (token % kTokensPerWord)));
}

inline void clear_bit(span<int32_t> words, uint32_t token) {
  auto& word = words[token / kTokensPerWord];
  word = static_cast<int32_t>(static_cast<uint32_t>(word) & ~(1U << (token % kTokensPerWord)));
}

}  // namespace obverse
