#include "obverse/subset.hpp"

#include <algorithm>

namespace obverse {

Subset::Subset(std::shared_ptr<const Trie> trie, span<const uint32_t> terminals) : trie_(std::move(trie)) {
  // Node numbers rise with the token among siblings, so ways from the root compare as their names' tokens do.
  std::vector<std::vector<uint32_t>> ways;
  ways.reserve(terminals.size());
  for (const uint32_t terminal : terminals) {
    require(terminal > 0 && terminal < trie_->num_nodes() && trie_->is_terminal(terminal),
            "a subset must be made of nodes where a name ends, got node ", terminal);
    std::vector<uint32_t> way;
    for (uint32_t node = terminal; node != 0; node = trie_->parent(node)) way.push_back(node);
    std::reverse(way.begin(), way.end());
    ways.push_back(std::move(way));
  }
  std::sort(ways.begin(), ways.end());
  ways.erase(std::unique(ways.begin(), ways.end()), ways.end());
  std::vector<std::pair<uint32_t, std::pair<uint32_t, uint32_t>>> found;
  found.push_back({0, {0, static_cast<uint32_t>(ways.size())}});
  std::vector<size_t> open;  // places in `found` of the nodes of the way before
  for (uint32_t i = 0; i < ways.size(); ++i) {
    terminals_.push_back(ways[i].back());
    size_t shared = 0;
    if (i > 0) {
      while (shared < ways[i].size() && shared < ways[i - 1].size() && ways[i][shared] == ways[i - 1][shared])
        ++shared;
    }
    open.resize(shared);
    for (const size_t place : open) found[place].second.second = i + 1;
    for (size_t depth = shared; depth < ways[i].size(); ++depth) {
      open.push_back(found.size());
      found.push_back({ways[i][depth], {i, i + 1}});
    }
  }
  std::sort(found.begin(), found.end());
  for (const auto& [node, run] : found) {
    nodes_.push_back(node);
    runs_.push_back(run);
  }
}

size_t Subset::find(uint32_t node) const {
  const auto it = std::lower_bound(nodes_.begin(), nodes_.end(), node);
  return it != nodes_.end() && *it == node ? static_cast<size_t>(it - nodes_.begin()) : nodes_.size();
}

size_t Subset::find_terminal(uint32_t node) const {
  const size_t at = find(node);
  // A terminal is the first of those that its own node leads to: a name sorts before what goes on from it.
  if (at == nodes_.size() || runs_[at].first >= terminals_.size()) return terminals_.size();
  return terminals_[runs_[at].first] == node ? runs_[at].first : terminals_.size();
}

bool any_bit(span<const uint64_t> bits, uint32_t begin, uint32_t end) {
  while (begin < end) {
    const uint32_t shift = begin % 64;
    const uint32_t count = std::min(64 - shift, end - begin);
    const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << shift;
    if ((bits[begin / 64] & mask) != 0) return true;
    begin += count;
  }
  return false;
}

}  // namespace obverse
