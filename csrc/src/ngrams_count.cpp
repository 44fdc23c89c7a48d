#include <algorithm>
#include <atomic>

#include "memory.hpp"
#include "obverse/ngrams.hpp"
#include "obverse/random.hpp"
#include "parallel.hpp"

namespace obverse {
namespace {

// The number of an n-gram that occurs once, and no text.
constexpr uint32_t kOnce = 0xFFFFFFFFU, kNoText = 0xFFFFFFFFU;
// Occurrences a partition is meant to have, so that its table stays in a core's cache; and most partitions.
constexpr int64_t kPartition = 16'384, kMostPartitions = 1 << 16;

/// One occurrence of an n-gram. `key` names the n-gram; once it is in the partition's table, its place there.
struct Occurrence {
  uint64_t key;
  uint32_t position, text;
};

/// What a partition knows of one n-gram: how often it occurs, in the text being read and in the two that have most.
struct Gram {
  uint32_t count = 0;
  uint32_t text = kNoText, in_text = 0;
  uint32_t most = 0, most_text = kNoText, second = 0;

  void see(uint32_t of_text) {
    ++count;
    if (of_text != text) {
      end_text();
      text = of_text;
      in_text = 0;
    }
    ++in_text;
  }
  /// Counts the text that was read in. Of equal counts the second is the greatest too: whichever text asks, another
  /// one has it.
  void end_text() {
    if (in_text > most) {
      second = most;
      most = in_text;
      most_text = text;
    } else {
      second = std::max(second, in_text);
    }
  }
  /// Whether one more occurrence in `of_text` is matched by another text's.
  bool match(uint32_t of_text) {
    if (of_text != text) {
      text = of_text;
      in_text = 0;
    }
    return ++in_text <= (of_text == most_text ? second : most);
  }
};

/// The distinct n-grams of one partition, by open addressing; used again for the next.
class Grams {
 public:
  Grams() : slots_(1024) {}

  void clear() {
    if (slots_.size() > 8 * (keys_.size() + 128)) {
      slots_.assign(1024, 0);
    } else {
      std::fill(slots_.begin(), slots_.end(), 0U);
    }
    keys_.clear();
    grams_.clear();
  }
  size_t place(uint64_t key) {
    const size_t mask = slots_.size() - 1;
    for (size_t s = slot_hash(key) & mask;; s = (s + 1) & mask) {
      const uint32_t one = slots_[s];
      if (one == 0) {
        keys_.push_back(key);
        grams_.emplace_back();
        slots_[s] = static_cast<uint32_t>(keys_.size());
        if (2 * keys_.size() > slots_.size()) grow();
        return keys_.size() - 1;
      }
      if (keys_[one - 1] == key) return one - 1;
    }
  }
  size_t size() const { return keys_.size(); }
  Gram& operator[](size_t i) { return grams_[i]; }

 private:
  /// Other bits of the hash than those that chose the partition.
  static size_t slot_hash(uint64_t key) { return static_cast<size_t>(mix64(key)); }
  void grow() {
    slots_.assign(2 * slots_.size(), 0);
    const size_t mask = slots_.size() - 1;
    for (size_t i = 0; i < keys_.size(); ++i) {
      size_t s = slot_hash(keys_[i]) & mask;
      while (slots_[s] != 0) s = (s + 1) & mask;
      slots_[s] = static_cast<uint32_t>(i + 1);
    }
  }

  std::vector<uint32_t> slots_;  // place + 1, or 0
  std::vector<uint64_t> keys_;
  std::vector<Gram> grams_;
};

/// The counting of one order after another.
class Counter {
 public:
  Counter(const WordTexts& texts, bool with_matches, int threads, int64_t group_rows)
      : texts_(texts),
        matching_(with_matches),
        threads_(threads),
        group_rows_(std::max<int64_t>(group_rows, 1)) {
    int64_t num_partitions = 1;
    const auto tokens = static_cast<int64_t>(texts.words().size());
    while (num_partitions * kPartition < tokens && num_partitions < kMostPartitions) num_partitions *= 2;
    partitions_ = static_cast<size_t>(num_partitions);
    // Few words are counted sooner by one thread than several are woken.
    threads_ = static_cast<int>(std::min<int64_t>(threads_, num_partitions));
    grams_.resize(static_cast<size_t>(threads_));
  }

  /// Orders must be asked for from 1 up; `last` spares the numbers that only the next order would read.
  NgramCounts count(int64_t order, bool last) {
    order_ = order;
    NgramCounts result;
    if (matching_) result.matches.assign(texts_.size(), 0);
    if (!last) next_.resize(texts_.words().size());
    tally(&result);
    distinct_ = 0;
    numbered_ = 0;
    for (size_t first = 0; first < partitions_;) {
      const size_t end = group_end(first);
      deal(first, end);
      count_group(first, end, last, &result);
      first = end;
    }
    result.distinct += distinct_;
    numbers_.swap(next_);
    return result;
  }

 private:
  size_t partition(uint64_t key) const { return static_cast<size_t>(mix64(key) >> 40) & (partitions_ - 1); }

  /// Calls use(key, position, text) for n-grams of the texts [first, last) that may occur again, and
  /// once(position) for those that hold an (n - 1)-gram that doesn't.
  template <typename Use, typename Once>
  void scan(int64_t first, int64_t last, const Use& use, const Once& once) const {
    const span<const int64_t> offsets = texts_.offsets();
    const uint32_t* const numbers = order_ == 1 ? texts_.words().data() : numbers_.data();
    for (auto text = static_cast<size_t>(first); text < static_cast<size_t>(last); ++text) {
      const int64_t end = offsets[text + 1] - order_;
      for (int64_t p = offsets[text]; p <= end; ++p) {
        const auto position = static_cast<uint32_t>(p);
        const uint64_t head = numbers[p];
        if (order_ == 1) {
          use(head, position, static_cast<uint32_t>(text));
          continue;
        }
        const uint64_t tail = numbers[p + 1];
        if (head == kOnce || tail == kOnce) {
          once(position);
        } else {
          use(head << 32 | tail, position, static_cast<uint32_t>(text));
        }
      }
    }
  }

  /// Calls body(first, last, share) for shares of the texts, the same ones at every call.
  template <typename Body>
  void by_texts(const Body& body) const {
    parallel_for(threads_, static_cast<int64_t>(texts_.size()), 1024, body);
  }

  /// Occurrences by share of the texts and partition; and all that needs no partition.
  void tally(NgramCounts* result) {
    sizes_.assign(static_cast<size_t>(threads_) * partitions_, 0);
    std::vector<int64_t> totals(static_cast<size_t>(threads_)), alone(static_cast<size_t>(threads_));
    by_texts([&](int64_t first, int64_t last, int share) {
      int64_t* const sizes = sizes_.data() + static_cast<size_t>(share) * partitions_;
      int64_t total = 0, once = 0;
      scan(
          first, last,
          [&](uint64_t key, uint32_t, uint32_t) {
            ++sizes[partition(key)];
            ++total;
          },
          [&](uint32_t position) {
            if (!next_.empty()) next_[position] = kOnce;
            ++once;
          });
      totals[static_cast<size_t>(share)] = total + once;
      alone[static_cast<size_t>(share)] = once;
    });
    for (const int64_t total : totals) result->total += total;
    for (const int64_t once : alone) result->distinct += once;
  }

  int64_t size(size_t one) const {
    int64_t sum = 0;
    for (int share = 0; share < threads_; ++share)
      sum += sizes_[static_cast<size_t>(share) * partitions_ + one];
    return sum;
  }

  /// The end of the partitions from `first` on that share the scratch memory, one at least.
  size_t group_end(size_t first) const {
    int64_t rows = size(first);
    size_t end = first + 1;
    while (end < partitions_ && rows + size(end) <= group_rows_) rows += size(end++);
    return end;
  }

  /// Writes the occurrences of the partitions [first, end) partition by partition, each in order of position.
  void deal(size_t first, size_t end) {
    starts_.assign(end - first + 1, 0);
    std::vector<int64_t> places(static_cast<size_t>(threads_) * (end - first));
    int64_t at = 0;
    for (size_t one = first; one < end; ++one) {
      starts_[one - first] = at;
      for (size_t share = 0; share < static_cast<size_t>(threads_); ++share) {
        places[share * (end - first) + one - first] = at;
        at += sizes_[share * partitions_ + one];
      }
    }
    starts_.back() = at;
    if (at > room_) {
      scratch_ = Memory();  // the old piece goes before the new one comes
      scratch_ = Memory(at * static_cast<int64_t>(sizeof(Occurrence)));
      room_ = at;
    }
    Occurrence* const out = scratch_.as<Occurrence>();
    by_texts([&](int64_t from, int64_t to, int share) {
      int64_t* const place = places.data() + static_cast<size_t>(share) * (end - first);
      scan(
          from, to,
          [&](uint64_t key, uint32_t position, uint32_t text) {
            const size_t one = partition(key) - first;
            if (one < end - first) out[place[one]++] = {key, position, text};
          },
          [](uint32_t) {});
    });
  }

  void count_group(size_t first, size_t end, bool last, NgramCounts* result) {
    std::atomic<size_t> following{first};
    std::atomic<int64_t> distinct{0};
    parallel_for(threads_, threads_, 1, [&](int64_t begin, int64_t stop, int) {
      for (int64_t thread = begin; thread < stop; ++thread) {
        Grams& grams = grams_[static_cast<size_t>(thread)];
        for (size_t one = following++; one < end; one = following++) {
          distinct += count_partition(one - first, last, &grams, result);
        }
      }
    });
    distinct_ += distinct;
    numbered_ += starts_.back();
  }

  int64_t count_partition(size_t one, bool last, Grams* grams, NgramCounts* result) {
    Occurrence* const begin = scratch_.as<Occurrence>() + starts_[one];
    Occurrence* const end = scratch_.as<Occurrence>() + starts_[one + 1];
    grams->clear();
    for (Occurrence* at = begin; at != end; ++at) {
      at->key = grams->place(at->key);
      (*grams)[at->key].see(at->text);
    }
    if (last && !matching_) return static_cast<int64_t>(grams->size());
    for (size_t i = 0; i < grams->size(); ++i) {
      Gram& gram = (*grams)[i];
      gram.end_text();
      gram.text = kNoText;
    }
    // Numbers below the occurrences counted so far are those of other partitions.
    const auto base = static_cast<uint32_t>(numbered_ + starts_[one]);
    for (Occurrence* at = begin; at != end; ++at) {
      Gram& gram = (*grams)[at->key];
      if (!last) next_[at->position] = gram.count == 1 ? kOnce : base + static_cast<uint32_t>(at->key);
      if (matching_ && gram.match(at->text)) {
        std::atomic_ref<uint32_t>(result->matches[at->text]).fetch_add(1, std::memory_order_relaxed);
      }
    }
    return static_cast<int64_t>(grams->size());
  }

  const WordTexts& texts_;
  bool matching_;
  int threads_;
  int64_t group_rows_, order_ = 0, distinct_ = 0, numbered_ = 0, room_ = 0;
  size_t partitions_ = 1;
  std::vector<uint32_t> numbers_, next_;  // [tokens] of the order before and of this one
  std::vector<int64_t> sizes_;            // [threads, partitions] occurrences
  std::vector<int64_t> starts_;           // [partitions of the group + 1] in scratch_
  std::vector<Grams> grams_;              // [threads]
  Memory scratch_;
};

}  // namespace

std::vector<NgramCounts> count_ngrams(const WordTexts& texts, int64_t max_order, bool with_matches,
                                      int threads, int64_t partition_rows) {
  require(max_order >= 1 && max_order <= 16, "orders must be in [1, 16], got ", max_order);
  require(threads >= 1, "threads must be at least 1, got ", threads);
  require(texts.words().size() < kOnce && texts.size() < kNoText,
          "at most 2^32 - 2 tokens and texts can be counted at once, got ", texts.words().size(),
          " tokens of ", texts.size(), " texts");
  Counter counter(texts, with_matches, threads, partition_rows);
  std::vector<NgramCounts> counts;
  for (int64_t order = 1; order <= max_order; ++order)
    counts.push_back(counter.count(order, order == max_order));
  return counts;
}

}  // namespace obverse
