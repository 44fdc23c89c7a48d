// The int8 filter of the exact joins, once for every instruction set.
//
// A sub-block of rows meets a tile of columns. For a prefix of p values the filter bounds every pair's cosine, in
// units of scale^2:
//
//   <q_i, q_j> over the first p values + row_start_i + column_start_j + row_tail_i column_tail_j   >=   row_floor_i
//
// and sets the bit of each pair that reaches its row's floor. Everything but the last product and sum is in integers.
#pragma once

#include <cstdint>

#include "obverse/quantised.hpp"

namespace obverse {

constexpr int64_t kFilterChunk = 32;   // values of a row packed together: p is a multiple of it
constexpr int64_t kFilterRows = 8;     // rows of a register tile
constexpr int64_t kTileColumns = 960;  // a multiple of 48 and of 64
constexpr int64_t kTileWords = 16;     // 64-bit words of bits a row; the last is not used
constexpr int64_t kSubRows = 512;      // rows that meet a tile at once

struct FilterJob {
  const void* rows = nullptr;  // as pack_rows left them, from this sub-block's first group of 8
  int64_t chunk_bytes = 0;     // from one chunk of the packed rows to the next
  int64_t row_groups = 0;
  const void* columns = nullptr;        // as pack_columns left them, for this p or a longer one
  int64_t group_values = 0;             // values of a packed group of columns: its p times column_group
  int64_t first_group = 0, groups = 0;  // groups of `column_group` columns
  int64_t p = 0;
  const int32_t* row_start =
      nullptr;  // [8 row_groups]; holds -128 sum_{c < p} q_ic where columns are unsigned
  const float* row_tail = nullptr;
  const float* row_floor = nullptr;
  const int32_t* column_start = nullptr;  // [kTileColumns]
  const float* column_tail = nullptr;
  uint16_t* bits = nullptr;  // [8 row_groups, 4 kTileWords]: a bit a column, 16 columns a word
};

struct JoinKernels {
  int64_t column_group = 16;  // columns packed together: 48 or 16
  int64_t value_bytes = 2;    // of a packed value
  int32_t column_offset = 0;  // what pack_columns adds to every value
  /// rows [count, width] (count a multiple of 8) to out [width / 32][count / 8][...].
  void (*pack_rows)(const int8_t* rows, int64_t count, int64_t width, void* out);
  /// The first p values of columns [count, width] (count a multiple of column_group) to out [groups][p][...].
  void (*pack_columns)(const int8_t* columns, int64_t count, int64_t width, int64_t p, void* out);
  void (*filter)(const FilterJob& job);
  /// out[t] = <row, rows[list[t]]> over all `width` values, a multiple of 64; sums[j]: the sum of rows[j]'s values.
  void (*dots)(const int8_t* row, const int8_t* rows, const int32_t* sums, int64_t width, const int32_t* list,
               int64_t count, int32_t* out);
  /// out[c] = <x, z> over values 32 c .. 32 c + 31, for all chunks of `width` values.
  void (*chunk_dots)(const int8_t* x, const int8_t* z, int64_t width, int32_t* out);
  /// What a pair that passes the prefix sieve costs, in products of the prefix sieve (measured; a choice of p alone).
  double pass_cost = 500.0;
};

// Plain loops: each instruction set's compiler makes its own of this.
#define OBVERSE_CHUNK_DOTS                                                                     \
  void chunk_dots(const int8_t* x, const int8_t* z, int64_t width, int32_t* out) {             \
    for (int64_t c = 0; c < width; c += kFilterChunk) {                                        \
      int32_t sum = 0;                                                                         \
      for (int64_t i = 0; i < kFilterChunk; ++i) sum += int32_t{x[c + i]} * int32_t{z[c + i]}; \
      out[c / kFilterChunk] = sum;                                                             \
    }                                                                                          \
  }

/// The kernels of the best instruction set here that is not above `bound`.
const JoinKernels& join_kernels(VectorIsa bound);

extern const JoinKernels kJoinKernelsPortable;
extern const JoinKernels kJoinKernelsAvx2;
extern const JoinKernels kJoinKernelsAvx512Vnni;

}  // namespace obverse
