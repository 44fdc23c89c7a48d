// Masks kept ready for the nodes with the most children: the root, and those near it.
#pragma once

#include <cstdint>
#include <vector>

#include "obverse/trie.hpp"

namespace obverse {

/// Immutable. Holds the root's mask and those of the nodes with the most children, but for the root none of 256 or
/// fewer, as many as fit a megabyte. Found in the blocks that say they are wide, so building reads 16 bytes for 64 nodes.
class WideRows {
 public:
  static constexpr uint32_t kLeast = 256;
  static constexpr size_t kBudget = size_t{1} << 20U;  // bytes, root aside

  WideRows() = default;
  /// Tokens must lie below `vocab_size`.
  WideRows(const Trie& trie, uint32_t vocab_size);

  /// The children's mask, or an empty span where none is kept.
  span<const int32_t> find(uint32_t node) const;
  span<const int32_t> root() const { return span<const int32_t>(words_).first(width_); }

 private:
  size_t width_ = 0;
  std::vector<uint32_t> nodes_;  // ascending; the root first
  std::vector<int32_t> words_;   // a row each
};

}  // namespace obverse
