// A few names of a trie: what one request may write, or what one slot may hold.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "obverse/trie.hpp"

namespace obverse {

/// Immutable. The chosen terminals in the order of their tokens, and every node on the way to them with the run of
/// terminals that it leads to. Building costs a search in the trie for each token of each name: about a microsecond
/// a name.
class Subset {
 public:
  /// `terminals` are terminal nodes in any order, repeats allowed. Throws ValueError on a node that is none.
  Subset(std::shared_ptr<const Trie> trie, span<const uint32_t> terminals);

  const std::shared_ptr<const Trie>& trie() const { return trie_; }
  const std::vector<uint32_t>& terminals() const { return terminals_; }
  /// Nodes on the way, ascending; the root first.
  const std::vector<uint32_t>& nodes() const { return nodes_; }
  /// The terminals that nodes()[i] leads to: [begin, end) of terminals().
  std::pair<uint32_t, uint32_t> run(size_t i) const { return runs_[i]; }
  /// Where `node` stands in nodes(), or nodes().size().
  size_t find(uint32_t node) const;
  /// Where `node` stands in terminals(), or terminals().size().
  size_t find_terminal(uint32_t node) const;

 private:
  std::shared_ptr<const Trie> trie_;
  std::vector<uint32_t> terminals_;
  std::vector<uint32_t> nodes_;
  std::vector<std::pair<uint32_t, uint32_t>> runs_;
};

/// Whether any of bits [begin, end) is set.
bool any_bit(span<const uint64_t> bits, uint32_t begin, uint32_t end);

}  // namespace obverse
