#include "obverse/trie.hpp"

#include <algorithm>

#include "trie_storage.hpp"

namespace obverse {

uint32_t TokenRange::lower_bound(uint32_t token) const {
  uint32_t at = 0;
  for (uint32_t count = size_; count > 0;) {
    const uint32_t half = count / 2;
    const bool below = (*this)[at + half] < token;
    at = below ? at + half + 1 : at;
    count = below ? count - half - 1 : half;
  }
  return at;
}

int64_t Trie::step(uint32_t node, uint32_t token) const {
  const auto [begin, end] = child_range(node);
  const TokenRange found = tokens(begin, end);
  if (found.size() == 1) return found[0] == token ? int64_t{begin} : kNone;
  const uint32_t at = found.lower_bound(token);
  return at < found.size() && found[at] == token ? int64_t{begin} + at : kNone;
}

int64_t Trie::walk(span<const int32_t> tokens) const {
  int64_t node = 0;
  for (const int32_t token : tokens) {
    if (token < 0) return kNone;
    node = step(static_cast<uint32_t>(node), static_cast<uint32_t>(token));
    if (node == kNone) return kNone;
  }
  return node;
}

std::vector<Found> Trie::find(span<const int32_t> tokens) const {
  std::vector<Found> out;
  for (size_t begin = 0; begin < tokens.size(); ++begin) {
    int64_t node = 0;
    for (size_t end = begin; end < tokens.size() && tokens[end] >= 0; ++end) {
      node = step(static_cast<uint32_t>(node), static_cast<uint32_t>(tokens[end]));
      if (node == kNone) break;
      const auto at = static_cast<uint32_t>(node);
      if (is_terminal(at)) out.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end + 1), at});
    }
  }
  return out;
}

uint32_t Trie::rank(uint32_t node) const {
  const Block& block = blocks_[node / 64];
  const uint64_t bits = block.terminal[0] | uint64_t{block.terminal[1]} << 32U;
  return block.rank + static_cast<uint32_t>(std::popcount(bits & ((uint64_t{1} << (node % 64)) - 1)));
}

uint32_t Trie::terminal(uint32_t rank) const {
  if (rank >= num_terminals()) {
    throw IndexError(concat("a terminal's rank must be in [0, ", num_terminals(), "), got ", rank));
  }
  const auto above = std::upper_bound(blocks_.begin(), blocks_.end(), rank,
                                      [](uint32_t value, const Block& block) { return value < block.rank; });
  const auto at = static_cast<uint32_t>(std::max<std::ptrdiff_t>(above - blocks_.begin(), 1) - 1);
  uint64_t bits = blocks_[at].terminal[0] | uint64_t{blocks_[at].terminal[1]} << 32U;
  for (uint32_t skip = rank - std::min(rank, blocks_[at].rank); skip > 0 && bits != 0; --skip)
    bits &= bits - 1;
  const uint32_t node = at * 64 + static_cast<uint32_t>(bits == 0 ? 0 : std::countr_zero(bits));
  return std::min(node, static_cast<uint32_t>(num_nodes() - 1));
}

uint32_t Trie::parent(uint32_t node) const {
  if (node == 0) return 0;
  // The last node whose first child is not past `node`; childless nodes after it share that first child with their
  // successor, so it is the last one with first_child <= node among those below it that have children.
  uint32_t low = 0;
  for (uint32_t count = node; count > 1;) {
    const uint32_t half = count / 2;
    if (first_child(low + half) <= node) low += half;
    count -= half;
  }
  return low;
}

std::vector<uint32_t> Trie::sequence_ids(uint32_t node) const {
  std::vector<uint32_t> out;
  if (!is_terminal(node)) return out;
  const uint32_t at = rank(node);
  if (at >= ids_.size()) return out;
  out.push_back(ids_[at]);
  const auto [begin, end] = std::equal_range(extra_rank_.begin(), extra_rank_.end(), at);
  for (auto it = begin; it != end; ++it)
    out.push_back(extra_id_[static_cast<size_t>(it - extra_rank_.begin())]);
  return out;
}

std::vector<uint32_t> Trie::nodes_of_sequences() const {
  std::vector<uint32_t> out(num_sequences(), 0);
  std::vector<uint32_t> terminals;
  terminals.reserve(num_terminals());
  for (uint32_t node = 0; node < num_nodes(); ++node) {
    if (is_terminal(node)) terminals.push_back(node);
  }
  const auto set = [&](uint32_t id, size_t rank) {
    if (id < out.size() && rank < terminals.size()) out[id] = terminals[rank];
  };
  for (size_t rank = 0; rank < ids_.size(); ++rank) set(ids_[rank], rank);
  for (size_t i = 0; i < extra_id_.size(); ++i) set(extra_id_[i], extra_rank_[i]);
  return out;
}

size_t Trie::nbytes() const {
  return low_.size_bytes() + high_.size_bytes() + offset_.size_bytes() + blocks_.size_bytes() +
         overflow_.size_bytes() + ids_.size_bytes() + extra_rank_.size_bytes() + extra_id_.size_bytes() +
         used_.size_bytes();
}

uint32_t Trie::token_bound() const {
  for (size_t word = used_.size(); word > 0; --word) {
    if (used_[word - 1] != 0) {
      return static_cast<uint32_t>(word * 32) - static_cast<uint32_t>(std::countl_zero(used_[word - 1]));
    }
  }
  return 0;
}

uint32_t Trie::largest_token() const {
  const size_t n = num_nodes();
  if (high_.empty()) return *std::max_element(low_.begin() + 1, low_.end());
  const uint32_t top = *std::max_element(high_.begin() + 1, high_.end());
  uint32_t largest = 0;
  for (size_t node = 1; node < n; ++node) {
    if (high_[node] == top) largest = std::max(largest, uint32_t{low_[node]});
  }
  return top << 16U | largest;
}

void Trie::attach(const Storage& storage) {
  low_ = storage.low;
  high_ = storage.high;
  offset_ = storage.offset;
  blocks_ = storage.blocks;
  overflow_ = storage.overflow;
  ids_ = storage.ids;
  extra_rank_ = storage.extra_rank;
  extra_id_ = storage.extra_id;
  used_ = storage.used;
}

std::vector<Section> Trie::sections(const std::string& prefix) const {
  const auto as = [&](const char* name, span<const std::byte> bytes) {
    return Section{prefix + "." + name, bytes};
  };
  return {as("low", std::as_bytes(low_)),
          as("high", std::as_bytes(high_)),
          as("offset", std::as_bytes(offset_)),
          as("blocks", std::as_bytes(blocks_)),
          as("overflow", std::as_bytes(overflow_)),
          as("ids", std::as_bytes(ids_)),
          as("extra_rank", std::as_bytes(extra_rank_)),
          as("extra_id", std::as_bytes(extra_id_)),
          as("used", std::as_bytes(used_))};
}

std::shared_ptr<const Trie> Trie::from_sections(std::shared_ptr<const SectionFile> file,
                                                const std::string& prefix) {
  std::shared_ptr<Trie> trie(new Trie());
  const auto name = [&](const char* part) { return prefix + "." + part; };
  trie->low_ = file->section_as<uint16_t>(name("low"));
  trie->high_ = file->section_as<uint8_t>(name("high"));
  trie->offset_ = file->section_as<uint8_t>(name("offset"));
  trie->blocks_ = file->section_as<Block>(name("blocks"));
  trie->overflow_ = file->section_as<uint32_t>(name("overflow"));
  trie->ids_ = file->section_as<uint32_t>(name("ids"));
  trie->extra_rank_ = file->section_as<uint32_t>(name("extra_rank"));
  trie->extra_id_ = file->section_as<uint32_t>(name("extra_id"));
  trie->used_ = file->section_as<uint32_t>(name("used"));
  const std::string wrong = trie->check_sizes();
  require(wrong.empty(), file->path(), ": damaged file: trie '", prefix, "': ", wrong);
  trie->file_ = std::move(file);
  return trie;
}

/// What contradicts in the sections' sizes; empty where they agree.
std::string Trie::check_sizes() const {
  const size_t n = low_.size();
  if (n < 2 || n >= kOverflow) return "expected 2 to 2^31 - 1 nodes";
  if (!high_.empty() && high_.size() != n) return "expected as many high as low token halves";
  if (offset_.size() != n + 1 || blocks_.size() != n / 64 + 1)
    return "expected an offset a node and a block each 64";
  if (ids_.empty() || ids_.size() >= n) return "expected 1 to n - 1 terminals";
  if (extra_rank_.size() != extra_id_.size()) return "expected a rank for each extra sequence";
  return {};
}

bool Trie::is_sound() const {
  const size_t n = num_nodes();
  uint32_t expected = 1;
  uint32_t num_terminal = 0;
  for (uint32_t node = 0; node < n; ++node) {
    const uint32_t end = first_child(node + 1);
    if (first_child(node) != expected || end < expected || end > n || (end > expected && expected <= node))
      return false;
    uint32_t before = 0;
    for (uint32_t child = expected; child < end; ++child) {
      if ((child > expected && token(child) <= before) || !uses(token(child))) return false;
      before = token(child);
    }
    if (end == expected && node > 0 && !is_terminal(node)) return false;
    if (node % 64 == 0 && blocks_[node / 64].rank != num_terminal) return false;
    num_terminal += is_terminal(node) ? 1 : 0;
    expected = end;
  }
  const auto inside = [&](uint32_t id) { return id < num_sequences(); };
  const auto ranked = [&](uint32_t rank) { return rank < num_terminals(); };
  return expected == n && num_terminal == num_terminals() && !is_terminal(0) &&
         std::is_sorted(extra_rank_.begin(), extra_rank_.end()) && std::ranges::all_of(ids_, inside) &&
         std::ranges::all_of(extra_id_, inside) && std::ranges::all_of(extra_rank_, ranked);
}

}  // namespace obverse
