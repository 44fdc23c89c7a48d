#include "obverse/minhash.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "minhash_kernels.hpp"
#include "obverse/random.hpp"
#include "shingles.hpp"

namespace obverse {
namespace {

constexpr int64_t kMaxPermutations = 4096;
constexpr int64_t kMaxNgram = 64;

}  // namespace

void check_bands(int64_t num_perm, int64_t bands) {
  require(num_perm >= 1 && num_perm <= kMaxPermutations, "num_perm must be in [1, ", kMaxPermutations,
          "], got ", num_perm);
  require(bands >= 1 && bands <= num_perm && num_perm % bands == 0, "bands must divide num_perm = ", num_perm,
          ", got ", bands);
}

MinHasher::MinHasher(int64_t num_perm, int64_t bands, int64_t ngram, uint64_t seed, Isa isa)
    : seed_(mix64(seed)), kernel_(minhash_kernel(isa)) {
  check_bands(num_perm, bands);
  require(ngram >= 1 && ngram <= kMaxNgram, "ngram must be in [1, ", kMaxNgram, "], got ", ngram);
  bands_ = static_cast<size_t>(bands);
  ngram_ = static_cast<size_t>(ngram);
  KeyedRandom random(seed, 0);
  for (int64_t i = 0; i < num_perm; ++i) {
    multipliers_.push_back(random.next() | 1U);
    increments_.push_back(random.next());
  }
}

void MinHasher::signature(std::string_view text, span<uint32_t> out) const {
  std::vector<uint32_t> starts, hashes;
  hash_shingles(text, ngram_, seed_, &starts, &hashes);
  signature_of(hashes, out);
}

void MinHasher::signature_of(span<const uint32_t> hashes, span<uint32_t> out) const {
  require(out.size() == num_perm(), "a signature has ", num_perm(), " entries, got room for ", out.size());
  std::vector<uint64_t> minima(out.size(), std::numeric_limits<uint64_t>::max());
  kernel_(multipliers_.data(), increments_.data(), hashes.data(), hashes.size(), minima.data(),
          minima.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint32_t>(minima[i] >> 32);
}

TakeMinima minhash_kernel(Isa bound) {
#if defined(OBVERSE_X86_64)
  const Isa best = best_isa();
  const Isa isa = bound < best ? bound : best;
  if (isa >= Isa::kAvx512) return take_minima_avx512;
  if (isa == Isa::kAvx2) return take_minima_avx2;
#else
  static_cast<void>(bound);
#endif
  return take_minima_portable;
}

DuplicateIndex::DuplicateIndex(int64_t num_perm, int64_t bands, double threshold) : threshold_(threshold) {
  check_bands(num_perm, bands);
  require(threshold > 0.0 && threshold <= 1.0, "threshold must be in (0, 1], got ", threshold);
  num_perm_ = static_cast<size_t>(num_perm);
  bands_ = static_cast<size_t>(bands);
  width_ = num_perm_ / bands_;
  // The smallest count whose share reaches the threshold, by the same division that a reader would do.
  min_equal_ = 0;
  while (static_cast<double>(min_equal_) / static_cast<double>(num_perm_) < threshold) ++min_equal_;
  slots_.assign(bands_ * capacity_, kNone);
}

span<const uint32_t> DuplicateIndex::row(uint32_t r) const {
  return span<const uint32_t>(entries_).subspan(r * num_perm_, num_perm_);
}

size_t DuplicateIndex::slot(size_t band, span<const uint32_t> signature) const {
  const uint32_t* const wanted = signature.data() + band * width_;
  uint64_t h = band;
  for (size_t i = 0; i < width_; ++i) h = mix64(h ^ wanted[i]);
  const size_t mask = capacity_ - 1;
  for (size_t s = h & mask;; s = (s + 1) & mask) {
    const uint32_t r = slots_[band * capacity_ + s];
    if (r == kNone || std::equal(wanted, wanted + width_, row(r).data() + band * width_)) {
      return band * capacity_ + s;
    }
  }
}

bool DuplicateIndex::similar(uint32_t r, span<const uint32_t> signature) const {
  const uint32_t* const other = row(r).data();
  size_t num_equal = 0;
  for (size_t i = 0; i < num_perm_; ++i) num_equal += other[i] == signature[i];
  return num_equal >= min_equal_;
}

int64_t DuplicateIndex::find(span<const uint32_t> signature) const {
  require(signature.size() == num_perm_, "a signature must have ", num_perm_, " entries, got ",
          signature.size());
  uint32_t best = kNone;
  for (size_t band = 0; band < bands_; ++band) {
    for (uint32_t r = slots_[slot(band, signature)]; r != kNone; r = next_[r * bands_ + band]) {
      // Only an older row than the best so far can still matter, and chains run from new to old.
      if (r < best && similar(r, signature)) best = r;
    }
  }
  return best == kNone ? -1 : ids_[best];
}

int64_t DuplicateIndex::insert_or_find(int64_t id, span<const uint32_t> signature) {
  require(id >= 0, "ids must be >= 0 (-1 says that there is none), got ", id);
  const int64_t found = find(signature);
  if (found < 0) insert(id, signature);
  return found;
}

void DuplicateIndex::insert(int64_t id, span<const uint32_t> signature) {
  require(ids_.size() < kNone, "an index holds at most 2^32 - 1 rows");
  if (2 * (ids_.size() + 1) > capacity_) grow();
  const auto r = static_cast<uint32_t>(ids_.size());
  ids_.push_back(id);
  entries_.insert(entries_.end(), signature.begin(), signature.end());
  next_.resize(next_.size() + bands_, kNone);
  link(r);
}

void DuplicateIndex::link(uint32_t r) {
  for (size_t band = 0; band < bands_; ++band) {
    uint32_t& head = slots_[slot(band, row(r))];
    next_[r * bands_ + band] = head;
    head = r;
  }
}

void DuplicateIndex::grow() {
  capacity_ *= 2;
  slots_.assign(bands_ * capacity_, kNone);
  for (uint32_t r = 0; r < ids_.size(); ++r) link(r);
}

size_t DuplicateIndex::nbytes() const {
  return (slots_.capacity() + next_.capacity() + entries_.capacity()) * sizeof(uint32_t) +
         ids_.capacity() * sizeof(int64_t);
}

}  // namespace obverse
