// A set of numbers as one bit each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace obverse {

inline std::vector<uint64_t> no_bits(size_t count) { return std::vector<uint64_t>((count + 63) / 64, 0); }
inline void set_one(std::vector<uint64_t>* bits, size_t i) { (*bits)[i / 64] |= uint64_t{1} << (i % 64); }
inline void clear_one(std::vector<uint64_t>* bits, size_t i) {
  (*bits)[i / 64] &= ~(uint64_t{1} << (i % 64));
}
inline bool is_set(const std::vector<uint64_t>& bits, size_t i) {
  return ((bits[i / 64] >> (i % 64)) & 1U) != 0;
}

}  // namespace obverse
