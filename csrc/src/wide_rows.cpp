#include "obverse/wide_rows.hpp"

#include <algorithm>
#include <utility>

#include "obverse/bitmask.hpp"

namespace obverse {

WideRows::WideRows(const Trie& trie, uint32_t vocab_size) : width_(bitmask_words(vocab_size)) {
  std::vector<std::pair<uint32_t, uint32_t>> wide;  // children, node
  const span<const Trie::Block> blocks = trie.blocks();
  const auto limit = static_cast<uint32_t>(trie.num_nodes());
  for (uint32_t block = 0; block < blocks.size(); ++block) {
    // Only 64 nodes with more than 255 children between them stand as plain words.
    if ((blocks[block].base & Trie::kOverflow) == 0) continue;
    for (uint32_t node = std::max(1U, block * 64); node < std::min(limit, block * 64 + 64); ++node) {
      const uint32_t children = trie.children(node).size();
      if (children > kLeast) wide.push_back({children, node});
    }
  }
  const size_t most = kBudget / (width_ * sizeof(int32_t) + 1);
  if (wide.size() > most) {
    std::sort(wide.begin(), wide.end(), std::greater<>());
    wide.resize(most);
  }
  nodes_.push_back(0);
  for (const auto& [children, node] : wide) nodes_.push_back(node);
  std::sort(nodes_.begin(), nodes_.end());
  words_.assign(nodes_.size() * width_, 0);
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const span<int32_t> row = span<int32_t>(words_).subspan(i * width_, width_);
    trie.children(nodes_[i]).for_each([&](uint32_t token) { set_bit(row, token); });
  }
}

span<const int32_t> WideRows::find(uint32_t node) const {
  const auto it = std::lower_bound(nodes_.begin(), nodes_.end(), node);
  if (it == nodes_.end() || *it != node) return {};
  return span<const int32_t>(words_).subspan(static_cast<size_t>(it - nodes_.begin()) * width_, width_);
}

}  // namespace obverse
