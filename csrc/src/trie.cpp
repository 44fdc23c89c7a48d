#include "obverse/trie.hpp"

#include <algorithm>
#include <limits>

namespace obverse {

int64_t Trie::step(uint32_t node, uint32_t token) const {
  const span<const uint32_t> found = children(node);
  const auto it = std::lower_bound(found.begin(), found.end(), token);
  if (it == found.end() || *it != token) return kNone;
  return static_cast<int64_t>(first_child_[node]) + (it - found.begin());
}

span<const uint32_t> Trie::sequence_ids(uint32_t node) const {
  if (!is_terminal(node)) return {};
  const uint32_t before = terminal_[node / 32] & ((1U << (node % 32)) - 1U);
  const uint32_t rank = rank_[node / 32] + static_cast<uint32_t>(std::popcount(before));
  return sequence_ids_.subspan(sequence_offsets_[rank],
                               sequence_offsets_[rank + 1] - sequence_offsets_[rank]);
}

/// Sorts the sequences, then walks them level by level; a node is a range of the sorted order.
class Trie::Builder {
 public:
  explicit Builder(const Ragged<int32_t>& sequences) : sequences_(sequences) {}

  std::shared_ptr<const Trie> run() {
    sort();
    std::vector<Range> level{{0, static_cast<uint32_t>(order_.size())}};
    tokens_.push_back(0);
    for (size_t depth = 0; !level.empty(); ++depth) level = expand(level, depth);
    first_child_.push_back(static_cast<uint32_t>(tokens_.size()));
    sequence_offsets_.push_back(static_cast<uint32_t>(sequence_ids_.size()));
    return pack();
  }

 private:
  struct Range {
    uint32_t begin, end;
  };
  struct Item {
    uint64_t key;  // the first two tokens, each plus one so that "none" sorts first
    uint32_t index;
  };

  void sort() {
    std::vector<Item> items(sequences_.size());
    for (size_t i = 0; i < items.size(); ++i) {
      const span<const int32_t> s = sequences_[i];
      require(!s.empty(), "sequence ", i, " must hold at least one token, got none");
      const uint64_t second = s.size() > 1 ? static_cast<uint64_t>(s[1]) + 1 : 0;
      items[i] = {((static_cast<uint64_t>(s[0]) + 1) << 32) | second, static_cast<uint32_t>(i)};
    }
    std::sort(items.begin(), items.end(), [&](const Item& a, const Item& b) {
      if (a.key != b.key) return a.key < b.key;
      const span<const int32_t> x = sequences_[a.index];
      const span<const int32_t> y = sequences_[b.index];
      const auto order = std::lexicographical_compare_three_way(x.begin(), x.end(), y.begin(), y.end());
      return order != 0 ? order < 0 : a.index < b.index;
    });
    order_.reserve(items.size());
    for (const Item& item : items) order_.push_back(item.index);
  }

  std::vector<Range> expand(const std::vector<Range>& level, size_t depth) {
    std::vector<Range> next;
    for (const Range range : level) {
      const size_t node = first_child_.size();
      first_child_.push_back(static_cast<uint32_t>(tokens_.size()));
      if (node % 32 == 0) terminal_.push_back(0);
      uint32_t i = range.begin;
      if (sequences_[order_[i]].size() == depth) {
        terminal_.back() |= 1U << (node % 32);
        sequence_offsets_.push_back(static_cast<uint32_t>(sequence_ids_.size()));
        for (; i < range.end && sequences_[order_[i]].size() == depth; ++i)
          sequence_ids_.push_back(order_[i]);
      }
      while (i < range.end) {
        const int32_t token = sequences_[order_[i]][depth];
        const uint32_t begin = i;
        while (i < range.end && sequences_[order_[i]][depth] == token) ++i;
        tokens_.push_back(static_cast<uint32_t>(token));
        next.push_back({begin, i});
      }
    }
    require(tokens_.size() < std::numeric_limits<uint32_t>::max(), "a trie holds at most 2^32 - 2 nodes");
    return next;
  }

  std::shared_ptr<const Trie> pack() {
    std::vector<uint32_t> rank(terminal_.size(), 0);
    for (size_t w = 1; w < rank.size(); ++w) {
      rank[w] = rank[w - 1] + static_cast<uint32_t>(std::popcount(terminal_[w - 1]));
    }
    const Shape shape{tokens_.size(), sequence_ids_.size(), sequence_offsets_.size() - 1};
    std::shared_ptr<Trie> trie(new Trie());
    trie->owned_.reserve(num_words(shape));
    for (const auto* part :
         {&tokens_, &first_child_, &terminal_, &rank, &sequence_offsets_, &sequence_ids_}) {
      trie->owned_.insert(trie->owned_.end(), part->begin(), part->end());
    }
    trie->attach(shape, trie->owned_);
    return trie;
  }

  const Ragged<int32_t>& sequences_;
  std::vector<uint32_t> order_;
  std::vector<uint32_t> tokens_, first_child_, terminal_, sequence_offsets_, sequence_ids_;
};

std::shared_ptr<const Trie> Trie::build(const Ragged<int32_t>& sequences) {
  require(sequences.size() > 0, "a trie needs at least one sequence, got none");
  require(sequences.size() < std::numeric_limits<uint32_t>::max(),
          "a trie holds at most 2^32 - 2 sequences, got ", sequences.size());
  const span<const int32_t> flat = sequences.flat();
  const auto bad = std::find_if(flat.begin(), flat.end(), [](int32_t token) { return token < 0; });
  require(bad == flat.end(), "tokens must be >= 0, got tokens[", bad - flat.begin(),
          "] = ", bad == flat.end() ? 0 : *bad);
  return Builder(sequences).run();
}

uint64_t Trie::num_words(const Shape& shape) {
  const uint64_t num_bit_words = (shape.num_nodes + 31) / 32;
  return 2 * shape.num_nodes + 1 + 2 * num_bit_words + shape.num_terminals + 1 + shape.num_sequences;
}

void Trie::attach(const Shape& shape, span<const uint32_t> buffer) {
  buffer_ = buffer;
  size_t at = 0;
  const auto take = [&](uint64_t count) {
    const auto part = buffer.subspan(at, static_cast<size_t>(count));
    at += part.size();
    return part;
  };
  const uint64_t num_bit_words = (shape.num_nodes + 31) / 32;
  tokens_ = take(shape.num_nodes);
  first_child_ = take(shape.num_nodes + 1);
  terminal_ = take(num_bit_words);
  rank_ = take(num_bit_words);
  sequence_offsets_ = take(shape.num_terminals + 1);
  sequence_ids_ = take(shape.num_sequences);
}

}  // namespace obverse
