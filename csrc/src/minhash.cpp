#include "obverse/minhash.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "obverse/random.hpp"

namespace obverse {
namespace {

constexpr int64_t kMaxPermutations = 4096;
constexpr int64_t kMaxNgram = 64;

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

/// FNV-1a with a final mix: short inputs, no alignment or byte-order dependence.
uint32_t hash_bytes(std::string_view bytes, uint64_t seed) {
  uint64_t h = 0xCBF29CE484222325ULL ^ seed;
  for (const char byte : bytes) h = (h ^ static_cast<unsigned char>(byte)) * 0x100000001B3ULL;
  return static_cast<uint32_t>(mix64(h) >> 32);
}

/// Minimum over xs of each hash function.
void take_minima(span<const uint64_t> a, span<const uint64_t> b, span<const uint32_t> xs,
                 span<uint32_t> out) {
  const size_t num_perm = out.size();
  const uint64_t* const pa = a.data();
  const uint64_t* const pb = b.data();
  uint32_t* const po = out.data();
  for (const uint32_t x : xs) {
    for (size_t i = 0; i < num_perm; ++i) {
      po[i] = std::min(po[i], static_cast<uint32_t>((pa[i] * x + pb[i]) >> 32));
    }
  }
}

}  // namespace

void check_bands(int64_t num_perm, int64_t bands) {
  require(num_perm >= 1 && num_perm <= kMaxPermutations, "num_perm must be in [1, ", kMaxPermutations,
          "], got ", num_perm);
  require(bands >= 1 && bands <= num_perm && num_perm % bands == 0, "bands must divide num_perm = ", num_perm,
          ", got ", bands);
}

MinHasher::MinHasher(int64_t num_perm, int64_t bands, int64_t ngram, uint64_t seed) : seed_(mix64(seed)) {
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
  require(out.size() == num_perm(), "a signature has ", num_perm(), " entries, got room for ", out.size());
  std::vector<uint32_t> hashes;
  shingle_hashes(text, &hashes);
  std::fill(out.begin(), out.end(), std::numeric_limits<uint32_t>::max());
  take_minima(multipliers_, increments_, hashes, out);
}

void MinHasher::shingle_hashes(std::string_view text, std::vector<uint32_t>* out) const {
  std::vector<size_t> starts;  // of each code point, and the end
  starts.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (!is_continuation(text[i])) starts.push_back(i);
  }
  starts.push_back(text.size());
  const size_t num_characters = starts.size() - 1;
  if (num_characters <= ngram_) {
    out->push_back(hash_bytes(text, seed_));
    return;
  }
  out->reserve(num_characters - ngram_ + 1);
  for (size_t i = 0; i + ngram_ < starts.size(); ++i) {
    out->push_back(hash_bytes(text.substr(starts[i], starts[i + ngram_] - starts[i]), seed_));
  }
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
