// Near-duplicate texts: MinHash signatures (Broder 1997) and a banded index (Leskovec, Rajaraman and Ullman,
// "Mining of Massive Datasets", chapter 3.4).
//
// A text is the set of its character n-grams (Unicode code points, nothing normalised); a shorter text is one
// n-gram. The share of equal signature entries estimates the Jaccard similarity J of two such sets, with standard
// deviation sqrt(J (1 - J) / num_perm).
//
// The index looks only at earlier rows that agree with the query in all num_perm / bands entries of at least one
// band, so a pair is seen with probability 1 - (1 - J^(num_perm / bands))^bands. It misses nothing if
// bands > (1 - threshold) * num_perm: entries that differ can't spoil every band.
//
// Cost: signatures take num_perm multiply-adds a character. The index holds 4 * num_perm + 4 * bands bytes a row for
// entries and chains and 8 to 16 * bands for the tables; a look-up reads `bands` chains. Chains are short unless
// texts share much boilerplate: prefer fewer, longer bands there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "obverse/span.hpp"
#include "obverse/weighted_ce.hpp"

namespace obverse {

using TakeMinima = void (*)(const uint64_t* a, const uint64_t* b, const uint32_t* xs, size_t num_xs,
                            uint64_t* minima, size_t num_perm);

/// Throws ValueError unless bands divides num_perm and both are in [1, 4096].
void check_bands(int64_t num_perm, int64_t bands);

/// Makes signatures; immutable and thread-safe.
class MinHasher {
 public:
  /// ngram in characters, [1, 64]; isa may only lower what runs here, and changes no result. Throws ValueError on a
  /// parameter out of range.
  MinHasher(int64_t num_perm, int64_t bands, int64_t ngram, uint64_t seed, Isa isa = best_isa());

  /// Writes the signature of UTF-8 `text` to out[num_perm].
  void signature(std::string_view text, span<uint32_t> out) const;
  /// As signature, from the hashes of shingles that were made with this hasher's ngram and mixed_seed.
  void signature_of(span<const uint32_t> hashes, span<uint32_t> out) const;

  size_t num_perm() const { return multipliers_.size(); }
  size_t bands() const { return bands_; }
  size_t ngram() const { return ngram_; }
  uint64_t mixed_seed() const { return seed_; }

 private:
  size_t bands_, ngram_;
  uint64_t seed_;
  TakeMinima kernel_;
  std::vector<uint64_t> multipliers_, increments_;  // [num_perm]: h(x) = (a x + b mod 2^64) >> 32
};

/// Signatures by band; grows by insertion; not thread-safe.
class DuplicateIndex {
 public:
  /// threshold: estimated Jaccard in (0, 1]. Throws ValueError on a parameter out of range.
  DuplicateIndex(int64_t num_perm, int64_t bands, double threshold);

  /// The id of the first inserted row whose estimated Jaccard similarity is at least the threshold, or -1.
  int64_t find(span<const uint32_t> signature) const;
  /// As find; where it gives -1 the row is inserted under `id`.
  int64_t insert_or_find(int64_t id, span<const uint32_t> signature);

  size_t num_perm() const { return num_perm_; }
  size_t bands() const { return bands_; }
  double threshold() const { return threshold_; }
  size_t size() const { return ids_.size(); }
  size_t nbytes() const;

 private:
  static constexpr uint32_t kNone = 0xFFFFFFFFU;

  span<const uint32_t> row(uint32_t r) const;
  size_t slot(size_t band, span<const uint32_t> signature) const;
  void insert(int64_t id, span<const uint32_t> signature);
  void link(uint32_t r);
  void grow();
  bool similar(uint32_t r, span<const uint32_t> signature) const;

  size_t num_perm_, bands_, width_;
  double threshold_;
  size_t min_equal_;               // entries that must agree
  size_t capacity_ = 64;           // slots a band, a power of two
  std::vector<uint32_t> slots_;    // [bands, capacity]: newest row with the band's value, or kNone
  std::vector<uint32_t> next_;     // [rows, bands]: next older row with the same band value, or kNone
  std::vector<uint32_t> entries_;  // [rows, num_perm]
  std::vector<int64_t> ids_;       // [rows]
};

}  // namespace obverse
