// An immutable token trie for millions of names: level-order, the children of a node contiguous and sorted.
//
// Nodes are numbered level by level, so the children of node i are the nodes first_child(i) .. first_child(i + 1), and
// the next state is the child's own number: no target array. first_child never falls, so it is kept as a base for
// every 64 nodes and one byte a node; where 64 nodes have more than 255 children (near the root) as 64 plain words.
// A terminal bit a node and a running count a block give the terminal's rank, which indexes the sequence numbers.
//
//   low[n]      16 bits  a node's token, low half       offset[n + 1]  8 bits   first child, from the block's base
//   high[n]      8 bits  high part, only if some token  blocks[n / 64] 16 bytes terminal bits, rank, base
//                        is 65,536 or more              ids[terminals] 32 bits  sequence number by rank
//
// Cost: 3.25 bytes a node (4.25 with high) and 4 a name, against 8.25 and 8 for plain words. A step reads one block
// and two offsets, then searches among the children; a mask reads the children, which lie together.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "obverse/section_file.hpp"
#include "obverse/span.hpp"

namespace obverse {

/// The tokens of neighbouring nodes, ascending where they are one node's children.
class TokenRange {
 public:
  TokenRange(const uint16_t* low, const uint8_t* high, uint32_t size) : low_(low), high_(high), size_(size) {}
  uint32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  uint32_t operator[](uint32_t i) const {
    return low_[i] | (high_ == nullptr ? 0U : uint32_t{high_[i]} << 16U);
  }
  /// Number of tokens below `token`.
  uint32_t lower_bound(uint32_t token) const;
  /// Calls visit(token) for each, in order.
  template <typename Visit>
  void for_each(const Visit& visit) const {
    if (high_ == nullptr) {
      for (uint32_t i = 0; i < size_; ++i) visit(uint32_t{low_[i]});
    } else {
      for (uint32_t i = 0; i < size_; ++i) visit(low_[i] | uint32_t{high_[i]} << 16U);
    }
  }

 private:
  const uint16_t* low_;
  const uint8_t* high_;
  uint32_t size_;
};

/// Where a name stands in a token sequence.
struct Found {
  uint32_t begin, end, node;
  bool operator==(const Found&) const = default;
};

/// Thread-safe; the root is node 0. Whatever bytes a mapped file holds, no method leaves its sections.
class Trie {
 public:
  static constexpr int64_t kNone = -1;
  static constexpr int32_t kMaxToken = (1 << 24) - 1;
  static constexpr size_t kMaxLength = 65534;

  /// Sixty-four nodes: their terminal bits, the terminals before them, the first child of the first.
  struct Block {
    std::array<uint32_t, 2> terminal;
    uint32_t rank;
    uint32_t base;  // with kOverflow: where in `overflow` the 64 first children stand
  };
  static constexpr uint32_t kOverflow = 1U << 31U;

  /// Builds from token sequences, on `threads` threads (0: as many as the machine has). Equal sequences share a node.
  /// Memory beside the input: at most 1.5 times the result. Throws ValueError on no sequence, an empty sequence, one
  /// of more than kMaxLength tokens, a token outside [0, kMaxToken], or 2^31 sequences or nodes and more.
  static std::shared_ptr<const Trie> build(const Ragged<int32_t>& sequences, unsigned threads = 0);
  /// The trie whose sections are named "prefix.low" and so on, in place. Checks sizes only, in constant time. Throws
  /// ValueError (with the file's name) where a section is missing or their sizes contradict one another.
  static std::shared_ptr<const Trie> from_sections(std::shared_ptr<const SectionFile> file,
                                                   const std::string& prefix);
  /// What from_sections reads; borrowed from this trie.
  std::vector<Section> sections(const std::string& prefix) const;
  /// Whether every index stays inside and the order is a trie's: reads everything. (Methods are safe without it.)
  bool is_sound() const;

  size_t num_nodes() const { return low_.size(); }
  size_t num_terminals() const { return ids_.size(); }
  size_t num_sequences() const { return ids_.size() + extra_id_.size(); }
  size_t nbytes() const;
  span<const Block> blocks() const { return blocks_; }
  bool uses(uint32_t token) const {
    return token / 32 < used_.size() && ((used_[token / 32] >> (token % 32)) & 1U);
  }
  /// One more than the largest token, by `used`.
  uint32_t token_bound() const;
  /// The largest token that any node has; reads all.
  uint32_t largest_token() const;

  uint32_t first_child(uint32_t node) const {
    const Block& block = blocks_[node / 64];
    if ((block.base & kOverflow) == 0) [[likely]]
      return block.base + offset_[node];
    const size_t at = size_t{block.base & ~kOverflow} + node % 64;
    return at < overflow_.size() ? overflow_[at] : static_cast<uint32_t>(num_nodes());
  }
  /// The children's node numbers, [begin, end): always above `node` and inside the trie.
  std::pair<uint32_t, uint32_t> child_range(uint32_t node) const {
    const auto limit = static_cast<uint32_t>(num_nodes());
    const uint32_t end = std::min(first_child(node + 1), limit);
    return {std::min(std::max(first_child(node), node + 1), end), end};
  }
  TokenRange tokens(uint32_t begin, uint32_t end) const {
    return {low_.data() + begin, high_.empty() ? nullptr : high_.data() + begin, end - begin};
  }
  TokenRange children(uint32_t node) const {
    const auto [begin, end] = child_range(node);
    return tokens(begin, end);
  }
  uint32_t token(uint32_t node) const { return tokens(node, node + 1)[0]; }

  /// Hints at what child_range(node) will read, and, that being there, at what children(node) will: rows of a batch can
  /// wait for memory together instead of one after another.
  void fetch_node(uint32_t node) const {
    __builtin_prefetch(&blocks_[node / 64]);
    __builtin_prefetch(&offset_[node]);
  }
  void fetch_children(uint32_t node) const {
    const uint32_t begin = child_range(node).first;
    if (begin >= num_nodes()) return;
    __builtin_prefetch(&low_[begin]);
    if (!high_.empty()) __builtin_prefetch(&high_[begin]);
  }

  /// The child by `token`, or kNone.
  int64_t step(uint32_t node, uint32_t token) const;
  /// The node reached from the root by `tokens`, or kNone.
  int64_t walk(span<const int32_t> tokens) const;
  /// Every name that stands in `tokens`, by where it begins, then by length.
  std::vector<Found> find(span<const int32_t> tokens) const;
  bool is_terminal(uint32_t node) const {
    return ((blocks_[node / 64].terminal[node % 64 / 32] >> (node % 32)) & 1U) != 0;
  }
  /// Terminals among the nodes before `node`: a terminal's own rank.
  uint32_t rank(uint32_t node) const;
  /// The terminal node of this rank. Throws IndexError outside [0, num_terminals).
  uint32_t terminal(uint32_t rank) const;
  /// The node above; the root's is the root.
  uint32_t parent(uint32_t node) const;
  /// Numbers of the sequences that end at this node, ascending; empty unless terminal.
  std::vector<uint32_t> sequence_ids(uint32_t node) const;
  /// The node of each of num_sequences() sequences.
  std::vector<uint32_t> nodes_of_sequences() const;

 private:
  struct Storage;
  class Builder;

  Trie() = default;
  void attach(const Storage& storage);
  std::string check_sizes() const;

  std::shared_ptr<const Storage> owned_;
  std::shared_ptr<const SectionFile> file_;
  span<const uint16_t> low_;
  span<const uint8_t> high_, offset_;
  span<const Block> blocks_;
  span<const uint32_t> overflow_, ids_, extra_rank_, extra_id_, used_;
};

}  // namespace obverse
