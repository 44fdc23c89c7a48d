// A text's character n-grams: their hashes, and sets of them that compare bytes, not hashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace obverse {

/// Where the code points of UTF-8 text begin, and its end. Throws ValueError for a text of 4 GiB or more.
void character_starts(std::string_view text, std::vector<uint32_t>* starts);

/// Hashes of the shingles of `text` in order, repeats and all: its n-grams of `ngram` code points, or the whole text
/// where it has no more than that.
void hash_shingles(std::string_view text, size_t ngram, uint64_t mixed_seed, std::vector<uint32_t>* starts,
                   std::vector<uint32_t>* hashes);

/// The set of one text's shingles. Its counts are true ones: shingles of up to 7 bytes are their own keys, longer ones
/// with equal keys are told apart by their bytes.
class ShingleSet {
 public:
  /// Becomes the set of `text`, which must outlive its use. Gives the number of distinct shingles.
  size_t assign(std::string_view text, size_t ngram);
  /// How many distinct shingles another text shares with this one; where that is fewer than `needed`, any number
  /// below it.
  size_t count_shared(std::string_view text, size_t ngram, size_t needed);

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t start = 0, length = 0;
    uint64_t filled_at = 0;  // the set it belongs to; others are stale
    uint64_t shared_at = 0;  // the comparison that has counted it
  };

  /// The slot of a shingle of `text`, or the free one where it would go.
  Slot& slot(std::string_view text, uint64_t key, uint32_t start, uint32_t length);

  std::vector<Slot> slots_ = std::vector<Slot>(256);  // a power of two, at most half full
  int shift_ = 64 - 8;
  std::vector<uint32_t> starts_;
  std::string_view text_;
  uint64_t set_ = 0, clock_ = 0;
};

}  // namespace obverse
