#include "obverse/text_duplicates.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "obverse/random.hpp"
#include "parallel.hpp"
#include "shingles.hpp"

namespace obverse {
namespace {

/// P(X < k) of a binomial X.
double binomial_below(size_t n, double p, size_t k) {
  double total = 0.0;
  for (size_t i = 0; i < k; ++i) {
    const auto x = static_cast<double>(i), m = static_cast<double>(n);
    const double choose = std::lgamma(m + 1) - std::lgamma(x + 1) - std::lgamma(m - x + 1);
    total += std::exp(choose + x * std::log(p) + (m - x) * std::log1p(-p));
  }
  return total;
}

/// The most that `n` sketch bytes may be asked to agree in, for a pair at the threshold to be lost with at most
/// kSketchMiss.
size_t sketch_bound(size_t n, double threshold) {
  if (threshold >= 1.0) return n;
  size_t k = 0;
  while (k < n && binomial_below(n, threshold, k + 1) <= TextDuplicates::kSketchMiss) ++k;
  return k;
}

void check_options(const TextDuplicateOptions& o) {
  require(o.bands >= 1 && o.width >= 1 && o.bands <= o.num_perm && o.width <= o.num_perm / o.bands,
          "bands * width must be in [1, num_perm = ", o.num_perm, "], got ", o.bands, " * ", o.width);
  require(o.threshold > 0.0 && o.threshold <= 1.0, "threshold must be in (0, 1], got ", o.threshold);
}

/// Sorts 64-bit words by their high halves, keeping the order of equals (three passes of 11 bits).
void sort_by_high_half(std::vector<uint64_t>* words, std::vector<uint64_t>* scratch) {
  scratch->resize(words->size());
  for (int shift = 32; shift < 64; shift += 11) {
    size_t counts[2049] = {};
    for (const uint64_t word : *words) ++counts[((word >> shift) & 2047) + 1];
    for (size_t i = 1; i < 2049; ++i) counts[i] += counts[i - 1];
    for (const uint64_t word : *words) (*scratch)[counts[(word >> shift) & 2047]++] = word;
    words->swap(*scratch);
  }
}

}  // namespace

double expected_recall(const TextDuplicateOptions& options, double jaccard) {
  check_options(options);
  if (jaccard >= 1.0) return 1.0;
  const double meets_in_one = std::pow(jaccard, static_cast<double>(options.width));
  const double meets = -std::expm1(static_cast<double>(options.bands) * std::log1p(-meets_in_one));
  return std::max(0.0, meets - TextDuplicates::kSketchMiss);
}

struct TextDuplicates::Probe {
  uint32_t position = kNone;
  ShingleSet set;
};

struct SignScratch {
  ShingleSet set;
  std::vector<uint32_t> starts, hashes, signature;
};

TextDuplicates::TextDuplicates(const TextDuplicateOptions& options, span<const char> bytes,
                               span<const int64_t> offsets, span<const int64_t> order)
    : hasher_(options.num_perm, 1, options.ngram, options.seed),
      threshold_(options.threshold),
      bytes_(bytes),
      offsets_(offsets) {
  check_options(options);
  bands_ = static_cast<size_t>(options.bands);
  width_ = static_cast<size_t>(options.width);
  min_equal_ = sketch_bound(std::min(kSketch, hasher_.num_perm()), threshold_);
  const Ragged<char> checked(bytes, offsets);
  const auto n = static_cast<int64_t>(checked.size());
  check_order(n, order);
  collapse(order, n);
  const size_t p = rows_.size();
  buckets_.resize(bands_ * p);
  sketches_.resize(p * kSketch);
  sizes_.resize(p);
  checked_.resize(p);
  kept_by_.assign(p, kNone);
  jaccard_.assign(p, 1.0F);
  sets_ = DisjointSets(p);
  band_first_.assign(1, 0);
  bucket_start_.assign(1, 0);
}

std::string_view TextDuplicates::text(uint32_t p) const {
  const size_t row = rows_[p];
  const auto first = static_cast<size_t>(offsets_[row]), last = static_cast<size_t>(offsets_[row + 1]);
  return {bytes_.data() + first, last - first};
}

void TextDuplicates::collapse(span<const int64_t> order, int64_t num_rows) {
  const auto n = static_cast<size_t>(num_rows);
  size_t capacity = 64;
  while (capacity < 2 * n) capacity *= 2;
  std::vector<uint32_t> slots(capacity, kNone);
  positions_.resize(n);
  for (size_t place = 0; place < n; ++place) {
    const size_t row = order.empty() ? place : static_cast<size_t>(order[place]);
    const auto first = static_cast<size_t>(offsets_[row]);
    const std::string_view own(bytes_.data() + first, static_cast<size_t>(offsets_[row + 1]) - first);
    size_t s = std::hash<std::string_view>{}(own) & (capacity - 1);
    while (slots[s] != kNone && text(slots[s]) != own) s = (s + 1) & (capacity - 1);
    if (slots[s] == kNone) {
      slots[s] = static_cast<uint32_t>(rows_.size());
      rows_.push_back(static_cast<uint32_t>(row));
    }
    positions_[row] = slots[s];
  }
}

void TextDuplicates::sign(int64_t first, int64_t last, int threads) {
  require(first >= 0 && first <= last && last <= num_distinct(), "texts must be in [0, ", num_distinct(),
          "), got [", first, ", ", last, ")");
  parallel_for(threads, last - first, 256, [&](int64_t from, int64_t to, int) {
    SignScratch scratch;
    scratch.signature.resize(hasher_.num_perm());
    for (int64_t p = first + from; p < first + to; ++p) sign_one(static_cast<uint32_t>(p), &scratch);
  });
}

void TextDuplicates::sign_one(uint32_t p, SignScratch* scratch) {
  sizes_[p] = static_cast<uint32_t>(scratch->set.assign(text(p), hasher_.ngram()));
  hash_shingles(text(p), hasher_.ngram(), hasher_.mixed_seed(), &scratch->starts, &scratch->hashes);
  std::vector<uint32_t>& signature = scratch->signature;
  hasher_.signature_of(scratch->hashes, signature);
  for (size_t band = 0; band < bands_; ++band) {
    uint64_t h = band;
    for (size_t i = 0; i < width_; ++i) h = mix64(h ^ signature[band * width_ + i]);
    buckets_[band * rows_.size() + p] = static_cast<uint32_t>(h >> 32);
  }
  for (size_t i = 0; i < std::min(kSketch, signature.size()); ++i) {
    sketches_[p * kSketch + i] = static_cast<uint8_t>(signature[i]);
  }
}

void TextDuplicates::gather(int64_t band) {
  require(band >= 0 && band < bands() && static_cast<size_t>(band) + 1 == band_first_.size(),
          "bands are gathered in order, once each; got ", band);
  const size_t num = rows_.size();
  uint32_t* const of = buckets_.data() + static_cast<size_t>(band) * num;
  std::vector<uint64_t> words(num), scratch;
  for (size_t p = 0; p < num; ++p) words[p] = uint64_t{of[p]} << 32 | p;
  sort_by_high_half(&words, &scratch);
  for (size_t first = 0, last = 0; first < num; first = last) {
    while (last < num && words[last] >> 32 == words[first] >> 32) ++last;
    const bool alone = last - first == 1;
    const size_t bucket = bucket_start_.size() - 1;
    require(bucket < kNone, "too many buckets for 32 bits; use fewer bands");
    for (size_t i = first; i < last; ++i)
      of[words[i] & kNone] = alone ? kNone : static_cast<uint32_t>(bucket);
    if (!alone) bucket_start_.push_back(bucket_start_.back() + last - first);
  }
  band_first_.push_back(bucket_start_.size() - 1);
}

bool TextDuplicates::likely(uint32_t p, uint32_t q) const {
  const auto few = static_cast<double>(std::min(sizes_[p], sizes_[q]));
  const auto many = static_cast<double>(std::max(sizes_[p], sizes_[q]));
  // The greatest J that sets of these sizes can have, by the division that decides in `compare`.
  if (few / many < threshold_) return false;
  const uint8_t* const a = sketches_.data() + size_t{p} * kSketch;
  const uint8_t* const b = sketches_.data() + size_t{q} * kSketch;
  size_t num_equal = 0;
  for (size_t i = 0; i < kSketch; ++i) num_equal += a[i] == b[i];
  return num_equal >= min_equal_;
}

double TextDuplicates::compare(Probe* probe, uint32_t p, uint32_t q) {
  ++num_compared_;
  if (probe->position != p) {
    probe->set.assign(text(p), hasher_.ngram());
    probe->position = p;
  }
  const size_t both = size_t{sizes_[p]} + sizes_[q];
  // J >= t means shared >= t / (1 + t) * both; one less is asked for than rounding may have made of that.
  const double bound = threshold_ / (1.0 + threshold_) * static_cast<double>(both);
  const auto needed = static_cast<size_t>(std::max(0.0, std::floor(bound) - 1.0));
  const size_t shared = probe->set.count_shared(text(q), hasher_.ngram(), needed);
  return static_cast<double>(shared) / static_cast<double>(both - shared);
}

void TextDuplicates::keep(int64_t first, int64_t last) {
  require(static_cast<int64_t>(band_first_.size()) == bands() + 1, "gather every band first");
  require(first >= 0 && first <= last && last <= num_distinct(), "texts must be in [0, ", num_distinct(),
          "), got [", first, ", ", last, ")");
  if (first == 0) {
    bucket_used_.assign(bucket_start_.size() - 1, 0);
    members_.resize(bucket_start_.back());
  }
  Probe probe;
  const size_t num = rows_.size();
  for (auto p = static_cast<uint32_t>(first); p < static_cast<uint32_t>(last); ++p) {
    uint32_t best = kNone;
    for (size_t band = 0; band < bands_; ++band) {
      const uint32_t bucket = buckets_[band * num + p];
      if (bucket == kNone) continue;
      const uint32_t* const kept = members_.data() + bucket_start_[bucket];
      for (uint32_t i = 0; i < bucket_used_[bucket] && kept[i] < best; ++i) {
        const uint32_t q = kept[i];
        if (checked_[q] == p + 1) continue;
        checked_[q] = p + 1;
        if (!likely(p, q)) continue;
        const double jaccard = compare(&probe, p, q);
        if (jaccard < threshold_) continue;
        best = kept_by_[p] = q;
        jaccard_[p] = static_cast<float>(jaccard);
        break;
      }
    }
    if (best != kNone) {
      sets_.join(p, best);
      continue;
    }
    for (size_t band = 0; band < bands_; ++band) {
      const uint32_t bucket = buckets_[band * num + p];
      if (bucket != kNone) members_[bucket_start_[bucket] + bucket_used_[bucket]++] = p;
    }
  }
}

bool TextDuplicates::met_before(size_t band, uint32_t p, uint32_t q) const {
  const size_t num = rows_.size();
  for (size_t b = 0; b < band; ++b) {
    const uint32_t bucket = buckets_[b * num + p];
    if (bucket != kNone && bucket == buckets_[b * num + q]) return true;
  }
  return false;
}

void TextDuplicates::link_bucket(size_t band, span<const uint32_t> members, Probe* probe) {
  std::vector<std::vector<uint32_t>> groups;  // the members so far, by component
  for (const uint32_t p : members) {
    std::vector<uint32_t> own;
    for (std::vector<uint32_t>& group : groups) {
      bool joined = sets_.find(group.front()) == sets_.find(p);
      for (size_t i = 0; !joined && i < group.size(); ++i) {
        joined = likely(p, group[i]) && !met_before(band, p, group[i]) &&
                 compare(probe, p, group[i]) >= threshold_;
        if (joined) sets_.join(p, group[i]);
      }
      if (!joined) continue;
      if (own.size() < group.size()) own.swap(group);
      own.insert(own.end(), group.begin(), group.end());
      group.clear();
    }
    std::erase_if(groups, [](const std::vector<uint32_t>& group) { return group.empty(); });
    own.push_back(p);
    groups.push_back(std::move(own));
  }
}

void TextDuplicates::link(int64_t band) {
  require(static_cast<int64_t>(band_first_.size()) == bands() + 1, "gather every band first");
  require(band >= 0 && band < bands(), "bands are in [0, ", bands(), "), got ", band);
  const auto b = static_cast<size_t>(band);
  const size_t num = rows_.size(), first = band_first_[b], last = band_first_[b + 1];
  std::fill(bucket_used_.begin() + static_cast<ptrdiff_t>(first),
            bucket_used_.begin() + static_cast<ptrdiff_t>(last), 0U);
  for (size_t p = 0; p < num; ++p) {
    const uint32_t bucket = buckets_[b * num + p];
    if (bucket != kNone) members_[bucket_start_[bucket] + bucket_used_[bucket]++] = static_cast<uint32_t>(p);
  }
  Probe probe;
  for (size_t bucket = first; bucket < last; ++bucket) {
    const span<const uint32_t> members(members_.data() + bucket_start_[bucket], bucket_used_[bucket]);
    const bool whole = std::all_of(members.begin(), members.end(),
                                   [&](uint32_t p) { return sets_.find(p) == sets_.find(members.front()); });
    if (!whole) link_bucket(b, members, &probe);
  }
}

DuplicateGroups TextDuplicates::groups() const {
  const size_t n = positions_.size();
  DuplicateGroups result{std::vector<int64_t>(n), std::vector<uint8_t>(n), std::vector<int64_t>(n, -1),
                         std::vector<float>(n, 1.0F)};
  std::vector<int64_t> lowest(rows_.size(), -1);  // row, by root
  for (size_t row = 0; row < n; ++row) {
    int64_t& low = lowest[sets_.root(positions_[row])];
    if (low < 0) low = static_cast<int64_t>(row);
    result.group[row] = low;
    const uint32_t p = positions_[row], by = kept_by_[p];
    if (by != kNone) {
      result.duplicate_of[row] = rows_[by];
      result.similarity[row] = jaccard_[p];
    } else if (rows_[p] == row) {
      result.kept[row] = 1;
    } else {
      result.duplicate_of[row] = rows_[p];
    }
  }
  return result;
}

size_t TextDuplicates::nbytes() const {
  return 4 * (rows_.capacity() + positions_.capacity() + buckets_.capacity() + sizes_.capacity() +
              checked_.capacity() + kept_by_.capacity() + jaccard_.capacity() + rows_.size() +
              bucket_used_.capacity() + members_.capacity()) +
         8 * (bucket_start_.capacity() + band_first_.capacity()) + sketches_.capacity();
}

}  // namespace obverse
