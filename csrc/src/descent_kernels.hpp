// Joins of small blocks of int8 rows into bounded neighbour lists, once for every instruction set.
//
// A list entry is one 64-bit key: the rows' int8 dot product above, then the complement of the id, then two bits that
// say "new": not yet used as a neighbour of the list's row, not yet used the other way round. Keys are therefore ordered by (dot, -id), which no two ids share; what a list holds at the end is the
// greatest keys ever offered to it, in whatever order they came. Everything here is integer, so every instruction
// set and every number of threads gives the same lists.
#pragma once

#include <cstdint>

#include "obverse/quantised.hpp"

namespace obverse {

/// Empty place number `e` of a list: less than every key, and unlike every other place's.
__attribute__((always_inline)) constexpr int64_t descent_no_key(int e) { return INT64_MIN + e; }

constexpr int64_t kDescentForward = 1, kDescentBackward = 2, kDescentFresh = 3;
constexpr int64_t kDescentMaxRows = int64_t{1} << 30;

// Always inlined: a shared copy of one of these could have been compiled for AVX-512.
__attribute__((always_inline)) inline int64_t descent_key(int32_t dot, int32_t id, bool fresh) {
  const auto low = static_cast<uint32_t>(0x3FFFFFFF - id) << 2 | (fresh ? 3U : 0U);
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(dot)) << 32 | low);
}
__attribute__((always_inline)) inline int32_t descent_id(int64_t key) {
  return 0x3FFFFFFF - static_cast<int32_t>(static_cast<uint32_t>(key) >> 2);
}
__attribute__((always_inline)) inline int32_t descent_dot(int64_t key) {
  return static_cast<int32_t>(key >> 32);
}

/// The rows and their lists, shared by all threads.
struct DescentRows {
  const int8_t* q = nullptr;      // [N, stride]
  const int32_t* sums = nullptr;  // [N]: the sum of each row of q
  int64_t* keys = nullptr;        // [N, degree], in no order; 64-byte aligned
  int32_t* thresholds =
      nullptr;               // [N]: the least key's dot product, INT32_MIN while there is room; it only rises
  uint8_t* locks = nullptr;  // [N]: 1 while a thread changes the list
  int64_t stride = 0;        // from row to row
  int32_t width = 0;         // what is read of a row, a multiple of 64
  int32_t degree = 0;        // a multiple of 8, at most kDescentMaxDegree
};

constexpr int kDescentMaxDegree = 256;

/// Rows joined with one another: `fresh` of them with all, all others (from `fresh` on) only with these.
struct DescentBlock {
  const int32_t* ids = nullptr;  // [count], all different
  int32_t count = 0, fresh = 0;
};

struct DescentKernels {
  /// Bytes of scratch that blocks of `count` rows need, a multiple of 64.
  int64_t (*scratch_bytes)(int32_t width, int32_t count);
  /// Offers every pair of the block to both rows' lists, and adds their number to `*evaluated`. `scratch`: 64-byte aligned, this thread's own.
  void (*join)(const DescentRows& rows, const DescentBlock& block, void* scratch, int64_t* evaluated);
  /// Packs `leaders` rows into `packed`, scratch_bytes of so many, for `nearest`.
  void (*pack)(const DescentRows& rows, const int32_t* leader_ids, int32_t leaders, void* packed);
  /// out [count, fanout]: each row's nearest leaders by (dot, -position), best first; fanout <= 4, <= leaders.
  void (*nearest)(const DescentRows& rows, const int32_t* ids, int32_t count, const void* packed,
                  int32_t leaders, int32_t fanout, int32_t* out);
};

/// The kernels of the best instruction set here that is not above `bound`.
const DescentKernels& descent_kernels(VectorIsa bound);

extern const DescentKernels kDescentPortable;
extern const DescentKernels kDescentAvx2;
extern const DescentKernels kDescentAvx512Vnni;

}  // namespace obverse
