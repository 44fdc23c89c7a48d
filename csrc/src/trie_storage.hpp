// What a built trie owns; a mapped one has the same as sections of its file.
#pragma once

#include <cstdint>
#include <vector>

#include "obverse/trie.hpp"

namespace obverse {

struct Trie::Storage {
  std::vector<uint16_t> low;
  std::vector<uint8_t> high, offset;
  std::vector<Block> blocks;
  std::vector<uint32_t> overflow, ids, extra_rank, extra_id, used;
};

}  // namespace obverse
