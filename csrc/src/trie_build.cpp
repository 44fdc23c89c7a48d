// Building a trie: group by first token, sort each group, then write every level at once in one pass.
//
// In the sorted order a sequence adds the nodes below what it shares with the one before it, so their numbers are known
// as soon as it is known how many nodes each level has: a first pass counts, a second writes. Both are split between
// threads at a first token, so that threads share no node but the root.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <functional>
#include <thread>

#include "trie_storage.hpp"

namespace obverse {
namespace {

constexpr uint16_t kDuplicate = 0xFFFF;
// While a trie is being built, a node's byte of `offset` holds these.
constexpr uint8_t kFirstSibling = 1;
constexpr uint8_t kHasChildren = 2;
constexpr uint8_t kTerminal = 4;
constexpr size_t kAhead = 16;  // sequences stand in input order: fetch those that come up

/// Calls work(i) for i in [0, count) on that many threads; the first exception is passed on.
void run_threads(size_t count, const std::function<void(size_t)>& work) {
  std::vector<std::exception_ptr> failed(count);
  const auto guarded = [&](size_t i) {
    try {
      work(i);
    } catch (...) {
      failed[i] = std::current_exception();
    }
  };
  std::vector<std::jthread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back(guarded, i);
  if (count > 0) guarded(0);
  threads.clear();
  for (const std::exception_ptr& error : failed) {
    if (error != nullptr) std::rethrow_exception(error);
  }
}

}  // namespace

class Trie::Builder {
 public:
  Builder(const Ragged<int32_t>& sequences, unsigned threads)
      : sequences_(sequences), num_threads_(threads), storage_(std::make_shared<Storage>()) {}

  std::shared_ptr<const Trie> run() {
    check();
    sort();
    split();
    count();
    write();
    finish();
    std::shared_ptr<Trie> trie(new Trie());
    trie->attach(*storage_);
    trie->owned_ = std::move(storage_);
    return trie;
  }

 private:
  /// A sequence in its group: the tokens after the first, as many as fit 64 bits, each plus one so that "none" sorts
  /// first. Twelve bytes.
  struct Item {
    uint32_t key_high, key_low, index;
    uint64_t key() const { return uint64_t{key_high} << 32U | key_low; }
  };
  struct Extra {
    uint32_t rank, id;
  };
  /// A run of the sorted order with its own counters by depth.
  struct Range {
    size_t begin = 0, end = 0;
    std::vector<uint32_t> nodes, terminals;  // counts by depth; in the second pass the next number
    std::vector<Extra> extras;
  };

  void check() {
    const size_t parts = num_threads_;
    std::vector<std::vector<uint32_t>> used(parts);
    run_threads(parts, [&](size_t part) {
      used[part].resize((kMaxToken + 1) / 32);
      for (size_t i = sequences_.size() * part / parts; i < sequences_.size() * (part + 1) / parts; ++i) {
        const span<const int32_t> s = sequences_[i];
        require(!s.empty(), "sequence ", i, " must hold at least one token, got none");
        require(s.size() <= kMaxLength, "sequence ", i, " must hold at most ", kMaxLength, " tokens, got ",
                s.size());
        for (const int32_t token : s) {
          require(token >= 0 && token <= kMaxToken, "tokens must be in [0, ", kMaxToken, "], got ", token,
                  " in sequence ", i);
          used[part][static_cast<size_t>(token) / 32] |= 1U << (token % 32);
        }
      }
    });
    for (size_t part = 1; part < parts; ++part) {
      for (size_t word = 0; word < used[0].size(); ++word) used[0][word] |= used[part][word];
    }
    while (used[0].back() == 0) used[0].pop_back();
    storage_->used.assign(used[0].begin(), used[0].end());
    max_token_ = static_cast<uint32_t>(used[0].size() * 32) - 1 -
                 static_cast<uint32_t>(std::countl_zero(used[0].back()));
  }

  uint64_t key_of(span<const int32_t> s) const {
    uint64_t key = 0;
    for (size_t d = 1; d <= tokens_in_key_; ++d) {
      key = key << bits_ | (d < s.size() ? static_cast<uint64_t>(s[d]) + 1 : 0);
    }
    return key;
  }

  void sort() {
    bits_ = static_cast<unsigned>(std::bit_width(max_token_ + 1));
    tokens_in_key_ = 64 / bits_;
    group_ends_.assign(size_t{max_token_} + 2, 0);
    for (size_t i = 0; i < sequences_.size(); ++i) ++group_ends_[static_cast<size_t>(sequences_[i][0]) + 1];
    for (size_t t = 1; t < group_ends_.size(); ++t) group_ends_[t] += group_ends_[t - 1];
    std::vector<Item> items(sequences_.size());
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const span<const int32_t> s = sequences_[i];
      const uint64_t key = key_of(s);
      items[group_ends_[static_cast<size_t>(s[0])]++] = {
          static_cast<uint32_t>(key >> 32U), static_cast<uint32_t>(key), static_cast<uint32_t>(i)};
    }
    // Each counter has moved from its group's begin to its end, so group t is now [group_ends_[t - 1], group_ends_[t]).
    std::atomic<size_t> next{0};
    run_threads(num_threads_, [&](size_t) {
      for (size_t t = next++; t <= max_token_; t = next++) {
        std::sort(items.begin() + (t == 0 ? 0 : group_ends_[t - 1]), items.begin() + group_ends_[t],
                  [&](const Item& a, const Item& b) { return comes_before(a, b); });
      }
    });
    order_.resize(items.size());
    for (size_t i = 0; i < items.size(); ++i) order_[i] = items[i].index;
  }

  bool comes_before(const Item& a, const Item& b) const {
    if (a.key() != b.key()) return a.key() < b.key();
    const span<const int32_t> x = sequences_[a.index];
    const span<const int32_t> y = sequences_[b.index];
    const auto from = static_cast<std::ptrdiff_t>(std::min({1 + tokens_in_key_, x.size(), y.size()}));
    const auto order =
        std::lexicographical_compare_three_way(x.begin() + from, x.end(), y.begin() + from, y.end());
    return order != 0 ? order < 0 : a.index < b.index;
  }

  /// Cuts the sorted order into a range a thread, at ends of groups.
  void split() {
    ranges_.resize(num_threads_);
    size_t begin = 0;
    for (size_t part = 0; part < ranges_.size(); ++part) {
      const auto wanted = static_cast<uint32_t>(order_.size() * (part + 1) / ranges_.size());
      const size_t end = *std::lower_bound(group_ends_.begin(), group_ends_.end() - 1, wanted);
      ranges_[part].begin = begin;
      ranges_[part].end = begin = std::max(begin, end);
    }
  }

  void fetch(size_t i, size_t end) const {
    if (i + kAhead < end) __builtin_prefetch(sequences_[order_[i + kAhead]].data());
  }

  void count() {
    shared_.resize(order_.size());
    run_threads(ranges_.size(), [&](size_t part) { count_range(&ranges_[part]); });
    size_t depths = 0;
    for (const Range& range : ranges_) depths = std::max(depths, range.nodes.size());
    uint64_t next_node = 1;
    uint32_t next_terminal = 0;
    for (Range& range : ranges_) {
      range.nodes.resize(depths);
      range.terminals.resize(depths);
    }
    for (size_t depth = 1; depth < depths; ++depth) {
      for (Range& range : ranges_) {
        const uint32_t nodes = range.nodes[depth];
        range.nodes[depth] = static_cast<uint32_t>(next_node);
        next_node += nodes;
        const uint32_t terminals = range.terminals[depth];
        range.terminals[depth] = next_terminal;
        next_terminal += terminals;
      }
      require(next_node < kOverflow, "a trie holds at most 2^31 - 1 nodes");
    }
    storage_->low.resize(next_node);
    if (max_token_ > 0xFFFF) storage_->high.resize(next_node);
    storage_->offset.resize(next_node + 1);
    storage_->ids.resize(next_terminal);
  }

  /// Counts new nodes by depth as differences: one more from `shared + 1`, one less after the length.
  void count_range(Range* range) {
    std::vector<int64_t> change(2, 0);
    range->terminals.resize(2);
    span<const int32_t> before;
    for (size_t i = range->begin; i < range->end; ++i) {
      fetch(i, range->end);
      const span<const int32_t> s = sequences_[order_[i]];
      const size_t limit = std::min(s.size(), before.size());
      size_t shared = 0;
      while (shared < limit && s[shared] == before[shared]) ++shared;
      if (s.size() + 2 > change.size()) {
        change.resize(s.size() + 2);
        range->terminals.resize(s.size() + 2);
      }
      if (shared == s.size()) {
        shared_[i] = kDuplicate;  // a proper prefix sorts before, so equal length is all it can be
      } else {
        shared_[i] = static_cast<uint16_t>(shared);
        ++change[shared + 1];
        --change[s.size() + 1];
        ++range->terminals[s.size()];
      }
      before = s;
    }
    range->nodes.assign(change.size(), 0);
    int64_t open = 0;
    for (size_t depth = 1; depth < change.size(); ++depth) {
      open += change[depth];
      range->nodes[depth] = static_cast<uint32_t>(open);
    }
  }

  void write() {
    run_threads(ranges_.size(), [&](size_t part) { write_range(&ranges_[part]); });
    // Every range began its own run of the root's children, but they are one.
    for (size_t part = 1; part < ranges_.size(); ++part) {
      if (ranges_[part].begin == ranges_[part].end || ranges_[part].begin == 0) continue;
      uint8_t& flags = storage_->offset[ranges_[part - 1].nodes[1]];
      flags = static_cast<uint8_t>(flags & ~kFirstSibling);
    }
    storage_->offset[0] = kHasChildren;
  }

  void write_range(Range* range) {
    std::vector<uint32_t> path(range->nodes.size() + 1, 0);
    Storage& to = *storage_;
    bool root_has_children = false;
    uint32_t rank = 0;
    for (size_t i = range->begin; i < range->end; ++i) {
      fetch(i, range->end);
      if (shared_[i] == kDuplicate) {
        range->extras.push_back({rank, order_[i]});
        continue;
      }
      const span<const int32_t> s = sequences_[order_[i]];
      for (size_t depth = size_t{shared_[i]} + 1; depth <= s.size(); ++depth) {
        const uint32_t node = range->nodes[depth]++;
        const auto token = static_cast<uint32_t>(s[depth - 1]);
        to.low[node] = static_cast<uint16_t>(token);
        if (!to.high.empty()) to.high[node] = static_cast<uint8_t>(token >> 16U);
        // The root is all threads' parent: each notes for itself that it has begun.
        const bool had = depth == 1 ? root_has_children : (to.offset[path[depth - 1]] & kHasChildren) != 0;
        if (!had) to.offset[node] = kFirstSibling;
        if (depth == 1) {
          root_has_children = true;
        } else if (!had) {
          to.offset[path[depth - 1]] |= kHasChildren;
        }
        path[depth] = node;
      }
      to.offset[path[s.size()]] |= kTerminal;
      rank = range->terminals[s.size()]++;
      to.ids[rank] = order_[i];
    }
  }

  void finish() {
    order_ = {};
    shared_ = {};
    Storage& to = *storage_;
    const auto n = static_cast<uint32_t>(to.low.size());
    to.blocks.resize(n / 64 + 1);
    uint32_t child = 1;
    uint32_t rank = 0;
    std::array<uint32_t, 64> first{};
    for (uint32_t begin = 0; begin <= n; begin += 64) {
      const uint32_t end = std::min(begin + 64, n + 1);
      Block& block = to.blocks[begin / 64];
      block = {{0, 0}, rank, child};
      for (uint32_t node = begin; node < end; ++node) {
        const uint8_t flags = node < n ? to.offset[node] : 0;
        first[node - begin] = child;
        if ((flags & kHasChildren) != 0) {
          for (++child; child < n && (to.offset[child] & kFirstSibling) == 0;) ++child;
        }
        if ((flags & kTerminal) != 0) {
          block.terminal[node % 64 / 32] |= 1U << (node % 32);
          ++rank;
        }
      }
      close_block(begin, end, first);
    }
    take_extras();
  }

  void close_block(uint32_t begin, uint32_t end, const std::array<uint32_t, 64>& first) {
    Storage& to = *storage_;
    Block& block = to.blocks[begin / 64];
    if (first[end - 1 - begin] - first[0] > 255) {
      block.base = kOverflow | static_cast<uint32_t>(to.overflow.size());
      to.overflow.insert(to.overflow.end(), first.begin(), first.begin() + (end - begin));
      to.overflow.resize(to.overflow.size() + (begin + 64 - end), first[end - 1 - begin]);
      std::fill(to.offset.begin() + begin, to.offset.begin() + end, uint8_t{0});
      return;
    }
    for (uint32_t node = begin; node < end; ++node) {
      to.offset[node] = static_cast<uint8_t>(first[node - begin] - first[0]);
    }
  }

  void take_extras() {
    std::vector<Extra> all;
    for (const Range& range : ranges_) all.insert(all.end(), range.extras.begin(), range.extras.end());
    std::stable_sort(all.begin(), all.end(), [](Extra a, Extra b) { return a.rank < b.rank; });
    for (const Extra extra : all) {
      storage_->extra_rank.push_back(extra.rank);
      storage_->extra_id.push_back(extra.id);
    }
  }

  const Ragged<int32_t>& sequences_;
  size_t num_threads_;
  std::shared_ptr<Storage> storage_;
  uint32_t max_token_ = 0;
  unsigned bits_ = 1;
  size_t tokens_in_key_ = 1;
  std::vector<uint32_t> group_ends_;  // by first token
  std::vector<uint32_t> order_;
  std::vector<uint16_t> shared_;  // tokens in common with the sequence before
  std::vector<Range> ranges_;
};

std::shared_ptr<const Trie> Trie::build(const Ragged<int32_t>& sequences, unsigned threads) {
  require(sequences.size() > 0, "a trie needs at least one sequence, got none");
  require(sequences.size() < kOverflow, "a trie holds at most 2^31 - 1 sequences, got ", sequences.size());
  unsigned count = threads > 0 ? threads : std::max(1U, std::thread::hardware_concurrency());
  // A thread is not worth starting for less.
  count = static_cast<unsigned>(std::min<size_t>(count, sequences.size() / 4096 + 1));
  return Builder(sequences, count).run();
}

}  // namespace obverse
