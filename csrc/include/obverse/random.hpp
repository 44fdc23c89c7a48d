// Counter-keyed random numbers: the stream depends on (seed, index) only, never on what was drawn before.
#pragma once

#include <cstdint>

namespace obverse {

/// SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014): a bijection that mixes all 64 bits.
inline uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// A SplitMix64 stream whose start is a hash of (seed, index).
class KeyedRandom {
 public:
  KeyedRandom(uint64_t seed, uint64_t index) : state_(mix64(mix64(seed) ^ mix64(~index))) {}

  uint64_t next() {
    const uint64_t out = mix64(state_);
    state_ += 0x9E3779B97F4A7C15ULL;
    return out;
  }
  /// Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  /// Uniform in [0, n) for n <= 2^32: the high part of a 64 x 32 bit product (bias below n / 2^64).
  uint64_t below(uint64_t n) {
    const uint64_t x = next();
    return ((x >> 32) * n + (((x & 0xFFFFFFFFULL) * n) >> 32)) >> 32;
  }

 private:
  uint64_t state_;
};

}  // namespace obverse
