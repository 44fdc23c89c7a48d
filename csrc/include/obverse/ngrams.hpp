// Words of many texts as numbers, and exact counts of their n-grams in linear time.
//
// An n-gram is known by the numbers of its first and of its last n - 1 words' (n - 1)-grams, so that no n-gram is
// taken for another: nothing rests on hashes being different. Positions are dealt by a hash of that pair over
// partitions that fit a cache, and each partition is counted alone; what holds an (n - 1)-gram that occurs once
// occurs once itself and is not looked at again.
//
// Clipped matches of text i: the sum over its distinct n-grams of min(its count in i, its greatest count in any
// other text), BLEU's numerator (Papineni et al., ACL 2002) with all other texts as references. The two greatest
// counts of each n-gram, and a text that has the greatest, answer that for every text at once.
//
// Cost: about a dozen linear passes an order. Memory: 4 bytes a token and 8 a text for the words, up to 8 bytes a
// token of numbers while counting, 4 bytes a text and order for matches, and 256 MB for the partitions in work (more
// only where the n-grams of one partition, in the worst case one n-gram, occur more than 2^24 times: 16 bytes each).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "obverse/span.hpp"

namespace obverse {

/// Distinct words, numbered in order of arrival; bytes are compared, so words are never mixed up.
class Vocabulary {
 public:
  Vocabulary() : slots_(1024, kNone), starts_{0} {}

  /// The number of `word` (its lower-cased bytes), given anew where it is new. `hash` must be a function of the word.
  uint32_t number(std::string_view word, uint64_t hash);
  size_t size() const { return hashes_.size(); }
  size_t nbytes() const;

 private:
  static constexpr uint32_t kNone = 0xFFFFFFFFU;
  void grow();

  std::vector<uint32_t> slots_;   // a power of two
  std::vector<uint64_t> hashes_;  // [words]
  std::vector<size_t> starts_;    // [words + 1] in bytes_
  std::vector<char> bytes_;
};

/// Texts as rows of word numbers; grows by `add`; not thread-safe while it does.
class WordTexts {
 public:
  /// Appends texts. A word is a run of ASCII letters, digits, `_` and bytes of 128 and more; ASCII letters are
  /// lower-cased. (Words of text that isn't ASCII are found by the caller, who passes them with spaces between.)
  void add(span<const std::string_view> texts);

  size_t size() const { return offsets_.size() - 1; }
  size_t num_words() const { return vocabulary_.size(); }
  /// Row i is words()[offsets()[i] .. offsets()[i + 1]).
  span<const uint32_t> words() const { return words_; }
  span<const int64_t> offsets() const { return offsets_; }
  size_t nbytes() const;

 private:
  Vocabulary vocabulary_;
  std::vector<uint32_t> words_;
  std::vector<int64_t> offsets_{0};
};

/// Counts of the n-grams of one order.
struct NgramCounts {
  int64_t total = 0;     // n-grams, none across two texts
  int64_t distinct = 0;  // different ones
  std::vector<uint32_t>
      matches;  // [texts] clipped matches against all other texts; empty where not asked for
};

/// Counts of orders 1 to max_order. The answer doesn't depend on `threads` (>= 1), nor on `partition_rows`: how many
/// positions share the scratch memory. Throws ValueError for an order out of [1, 16], or 2^32 - 1 tokens or more.
std::vector<NgramCounts> count_ngrams(const WordTexts& texts, int64_t max_order, bool with_matches,
                                      int threads, int64_t partition_rows = int64_t{1} << 24);

}  // namespace obverse
