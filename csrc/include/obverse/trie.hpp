// An immutable token trie for millions of names: level-order, children contiguous and sorted.
//
// Layout (all uint32, one buffer, the same in memory and on disk): nodes are numbered level by level, so the
// children of node i are nodes first_child[i] .. first_child[i + 1], their tokens ascending, and the next state is
// the child's own number: no target array. A terminal bit a node and a running count every 32 nodes give the
// terminal's rank, which indexes the list of sequence numbers that end there.
//
// Cost: 8.25 bytes a node plus 8 a sequence; a step is a binary search among the children.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "obverse/mapped_file.hpp"
#include "obverse/span.hpp"

namespace obverse {

/// Thread-safe; the root is node 0.
class Trie {
 public:
  static constexpr int64_t kNone = -1;

  /// Builds from token sequences. Equal sequences share a node. Throws ValueError on no sequence, an empty
  /// sequence, a negative token, or more than 2^32 - 2 sequences or nodes.
  static std::shared_ptr<const Trie> build(const Ragged<int32_t>& sequences);
  /// Maps a file that save wrote, in place. Reads it once to compare its checksum and check its structure.
  /// Throws IoError where it can't be read, ValueError (with the file's name) where it is not whole.
  static std::shared_ptr<const Trie> open(const std::string& path);
  /// Writes one little-endian file: 64 bytes of header, then the buffer. Throws IoError.
  void save(const std::string& path) const;

  size_t num_nodes() const { return tokens_.size(); }
  size_t num_sequences() const { return sequence_ids_.size(); }
  size_t nbytes() const { return buffer_.size_bytes(); }

  /// Children's tokens, ascending; child k is node first_child(node) + k.
  span<const uint32_t> children(uint32_t node) const {
    return tokens_.subspan(first_child_[node], first_child_[node + 1] - first_child_[node]);
  }
  uint32_t first_child(uint32_t node) const { return first_child_[node]; }
  /// The child by `token`, or kNone.
  int64_t step(uint32_t node, uint32_t token) const;
  bool is_terminal(uint32_t node) const { return ((terminal_[node / 32] >> (node % 32)) & 1U) != 0; }
  /// Numbers of the sequences that end at this node, ascending; empty unless terminal.
  span<const uint32_t> sequence_ids(uint32_t node) const;
  /// All nodes' tokens in node order (the root's entry is 0 and means nothing).
  span<const uint32_t> tokens() const { return tokens_; }

 private:
  struct Shape {
    uint64_t num_nodes;
    uint64_t num_sequences;
    uint64_t num_terminals;
  };
  class Builder;

  Trie() = default;
  static uint64_t num_words(const Shape& shape);
  void attach(const Shape& shape, span<const uint32_t> buffer);
  bool is_sound() const;

  std::vector<uint32_t> owned_;
  std::unique_ptr<MappedFile> file_;
  span<const uint32_t> buffer_;
  span<const uint32_t> tokens_, first_child_, terminal_, rank_, sequence_offsets_, sequence_ids_;
};

}  // namespace obverse
