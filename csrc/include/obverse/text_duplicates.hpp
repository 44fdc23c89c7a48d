// Near-duplicates among all texts of a set: MinHash (Broder 1997) proposes pairs, true Jaccard decides.
//
// A text is the set of its character n-grams, as in minhash.hpp. Bit-equal texts are one from the start. Two others
// meet if they agree in all `width` signature entries of one of `bands` bands; of those that meet, a pair counts if
// the Jaccard similarity J of the two sets, counted on their bytes, reaches the threshold. No pair below it ever
// counts; one above is missed with a chance of at most (1 - J^width)^bands + kSketchMiss (see `expected_recall`).
//
// Which rows stay is decided in order of priority: a row stays unless an earlier row that stays is within the
// threshold. So of a chain a - b - c whose ends are further apart, a and c stay, and every row that goes has one
// that stays within the threshold. Rows that stay are compared with rows that stay only, and a group's pairs only
// until it hangs together: a set of thousands of near-copies costs its size, not its square.
//
// Memory a distinct text, in bytes: 4 bands + sketch (64) + 28, and at most 8 bands more where every text meets
// another in every band; 20 a row on top. While a band is gathered, 16 more. With 21 bands that is about 0.2 to
// 0.4 kB, 2 to 4 GB for ten million texts, beside the texts.
//
// Use: sign all texts; gather every band; keep all texts; link every band; results. Each step takes a range, so that
// a caller can show progress and stop. The order of work and the number of threads change no result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "obverse/groups.hpp"
#include "obverse/minhash.hpp"
#include "obverse/span.hpp"

namespace obverse {

/// How texts are compared.
struct TextDuplicateOptions {
  int64_t num_perm = 128, ngram = 5, bands = 0, width = 0;  // bands * width <= num_perm
  double threshold = 0.8;                                   // Jaccard, in (0, 1]
  uint64_t seed = 0;
};

/// The chance that a pair of similarity `jaccard` is found, at least.
double expected_recall(const TextDuplicateOptions& options, double jaccard);

class TextDuplicates {
 public:
  /// Text i is bytes[offsets[i] .. offsets[i + 1]); both must outlive this. `order`: rows by falling priority, or
  /// empty for row order. Throws ValueError on options out of range, and on an order that is no permutation.
  TextDuplicates(const TextDuplicateOptions& options, span<const char> bytes, span<const int64_t> offsets,
                 span<const int64_t> order);

  int64_t num_distinct() const { return static_cast<int64_t>(rows_.size()); }
  int64_t bands() const { return static_cast<int64_t>(bands_); }

  void sign(int64_t first, int64_t last, int threads);  // distinct texts [first, last)
  void gather(int64_t band);                            // in order, once each
  void keep(int64_t first, int64_t last);               // in order, once each
  void link(int64_t band);

  /// Consumes nothing; of all rows.
  DuplicateGroups groups() const;
  int64_t num_compared() const { return num_compared_; }  // pairs whose sets were compared
  size_t nbytes() const;

  /// A pair at the threshold fails the sketch with a chance of at most this.
  static constexpr double kSketchMiss = 1e-6;

 private:
  static constexpr uint32_t kNone = 0xFFFFFFFFU;
  static constexpr size_t kSketch = 64;

  /// One text as it is compared with others: its set, made when first needed.
  struct Probe;

  std::string_view text(uint32_t p) const;
  void collapse(span<const int64_t> order, int64_t num_rows);
  void sign_one(uint32_t p, struct SignScratch* scratch);
  bool likely(uint32_t p, uint32_t q) const;
  double compare(Probe* probe, uint32_t p, uint32_t q);
  void link_bucket(size_t band, span<const uint32_t> members, Probe* probe);
  bool met_before(size_t band, uint32_t p, uint32_t q) const;

  MinHasher hasher_;
  double threshold_;
  size_t bands_, width_, min_equal_;  // sketch bytes that must agree
  span<const char> bytes_;
  span<const int64_t> offsets_;

  // By position: distinct texts in order of priority.
  std::vector<uint32_t> rows_;       // the row that stands for the position
  std::vector<uint32_t> positions_;  // [N] the position of a row's text
  std::vector<uint32_t> buckets_;    // [bands, P] the band's hash, then the bucket (kNone: alone in it)
  std::vector<uint8_t> sketches_;    // [P, 64]
  std::vector<uint32_t> sizes_;      // distinct shingles
  std::vector<uint32_t> checked_;    // the last position that was compared with this one, plus 1
  std::vector<uint32_t> kept_by_;    // the position that stays and is near, or kNone: stays itself
  std::vector<float> jaccard_;       // to kept_by_
  DisjointSets sets_;

  std::vector<size_t> band_first_;     // [bands + 1] the first bucket of a band
  std::vector<size_t> bucket_start_;   // where in members_
  std::vector<uint32_t> bucket_used_;  // members so far
  std::vector<uint32_t> members_;      // positions by bucket, falling priority
  int64_t num_compared_ = 0;
};

}  // namespace obverse
