// The one loop of MinHash, once for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "obverse/weighted_ce.hpp"

namespace obverse {

/// minima[i] = min(minima[i], a[i] x + b[i] mod 2^64) over the x in xs, for i < num_perm. Whole words: the least
/// word has the least high half, so that a hash's shift can wait until the end.
using TakeMinima = void (*)(const uint64_t* a, const uint64_t* b, const uint32_t* xs, size_t num_xs,
                            uint64_t* minima, size_t num_perm);

void take_minima_portable(const uint64_t* a, const uint64_t* b, const uint32_t* xs, size_t num_xs,
                          uint64_t* minima, size_t num_perm);
void take_minima_avx2(const uint64_t* a, const uint64_t* b, const uint32_t* xs, size_t num_xs,
                      uint64_t* minima, size_t num_perm);
void take_minima_avx512(const uint64_t* a, const uint64_t* b, const uint32_t* xs, size_t num_xs,
                        uint64_t* minima, size_t num_perm);

/// The best kernel that runs here, of `bound` or below.
TakeMinima minhash_kernel(Isa bound);

}  // namespace obverse
