// The filter by vpdpbusd: unsigned columns (q + 128) against signed rows, 8 rows by 48 columns in registers.
#include <immintrin.h>

#include "exact_join_kernels.hpp"

namespace obverse {
namespace isa_avx512vnni {
namespace {

constexpr int64_t kGroup = 48;
constexpr int64_t kStepBytes = 4 * kGroup;  // four values of 48 columns

void pack_rows(const int8_t* rows, int64_t count, int64_t width, void* out) {
  auto* to = static_cast<int32_t*>(out);
  for (int64_t chunk = 0; chunk < width; chunk += kFilterChunk) {
    for (int64_t r = 0; r < count; r += kFilterRows) {
      for (int64_t c = chunk; c < chunk + kFilterChunk; c += 4) {
        for (int64_t i = 0; i < kFilterRows; ++i) __builtin_memcpy(to++, rows + (r + i) * width + c, 4);
      }
    }
  }
}

/// Sixteen rows of 64 bytes, transposed by four bytes: out[s] = bytes 4 s .. 4 s + 3 of each.
inline void transpose16(const int8_t* from, int64_t stride, __m512i out[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 g + s]: for 128-bit lane l, the dwords 4 l + s of rows 4 g .. 4 g + 3.
  for (int s = 0; s < 4; ++s) {
    const __m512i low = _mm512_shuffle_i32x4(a[s], a[4 + s], 0x88);      // lanes 0, 2 of rows 0-3 and 4-7
    const __m512i low_odd = _mm512_shuffle_i32x4(a[s], a[4 + s], 0xdd);  // lanes 1, 3
    const __m512i high = _mm512_shuffle_i32x4(a[8 + s], a[12 + s], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(a[8 + s], a[12 + s], 0xdd);
    out[s] = _mm512_shuffle_i32x4(low, high, 0x88);
    out[8 + s] = _mm512_shuffle_i32x4(low, high, 0xdd);
    out[4 + s] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    out[12 + s] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
}

void pack_columns(const int8_t* columns, int64_t count, int64_t width, int64_t p, void* out) {
  auto* const to = static_cast<int8_t*>(out);
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t g = 0; g < count / kGroup; ++g) {
    for (int64_t part = 0; part < 3; ++part) {
      const int8_t* const from = columns + (g * kGroup + part * 16) * width;
      for (int64_t c = 0; c < p; c += 64) {
        __m512i turned[16];
        transpose16(from + c, width, turned);
        const int64_t steps = p - c < 64 ? (p - c) / 4 : 16;
        for (int64_t s = 0; s < steps; ++s) {
          _mm512_storeu_si512(to + (g * (p / 4) + c / 4 + s) * kStepBytes + part * 64,
                              _mm512_xor_si512(turned[s], flip));
        }
      }
    }
  }
}

/// Eight rows against one group of 48 columns.
inline void filter_group(const FilterJob& job, int64_t r, const int8_t* columns, int64_t g) {
  __m512i sum[kFilterRows][3];
  const int32_t* const column_start = job.column_start + g * kGroup;
  for (int v = 0; v < 3; ++v) {
    const __m512i start = _mm512_loadu_si512(column_start + 16 * v);
#pragma GCC unroll 8
    for (int i = 0; i < kFilterRows; ++i) {
      sum[i][v] = _mm512_add_epi32(start, _mm512_set1_epi32(job.row_start[r * kFilterRows + i]));
    }
  }
  const auto* row = static_cast<const char*>(job.rows) + r * kFilterRows * kFilterChunk;
  for (int64_t c = 0; c < job.p; c += kFilterChunk, row += job.chunk_bytes) {
    const auto* const values = reinterpret_cast<const int32_t*>(row);
#pragma GCC unroll 8
    for (int s = 0; s < kFilterChunk / 4; ++s, columns += kStepBytes) {
      const __m512i first = _mm512_loadu_si512(columns), second = _mm512_loadu_si512(columns + 64),
                    third = _mm512_loadu_si512(columns + 128);
#pragma GCC unroll 8
      for (int i = 0; i < kFilterRows; ++i) {
        const __m512i value = _mm512_set1_epi32(values[s * kFilterRows + i]);
        sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], first, value);
        sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], second, value);
        sum[i][2] = _mm512_dpbusd_epi32(sum[i][2], third, value);
      }
    }
  }
  const float* const column_tail = job.column_tail + g * kGroup;
  const __m512 tails[3] = {_mm512_loadu_ps(column_tail), _mm512_loadu_ps(column_tail + 16),
                           _mm512_loadu_ps(column_tail + 32)};
#pragma GCC unroll 8
  for (int i = 0; i < kFilterRows; ++i) {
    const __m512 tail = _mm512_set1_ps(job.row_tail[r * kFilterRows + i]);
    const __m512 least = _mm512_set1_ps(job.row_floor[r * kFilterRows + i]);
    uint16_t* const bits = job.bits + (r * kFilterRows + i) * 4 * kTileWords + g * 3;
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v) {
      const __m512 bound = _mm512_fmadd_ps(tail, tails[v], _mm512_cvtepi32_ps(sum[i][v]));
      bits[v] = static_cast<uint16_t>(_mm512_cmp_ps_mask(bound, least, _CMP_GE_OQ));
    }
  }
}

void filter(const FilterJob& job) {
  for (int64_t g = job.first_group; g < job.groups; ++g) {
    const auto* const columns = static_cast<const int8_t*>(job.columns) + g * job.group_values;
    for (int64_t r = 0; r < job.row_groups; ++r) filter_group(job, r, columns, g);
  }
}

void dots(const int8_t* row, const int8_t* rows, const int32_t* sums, int64_t width, const int32_t* list,
          int64_t count, int32_t* out) {
  // <row, z> = <row + 128, z> - 128 sum(z)
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    const int8_t* const z[4] = {rows + list[t] * width, rows + list[t + 1] * width,
                                rows + list[t + 2] * width, rows + list[t + 3] * width};
    __m512i sum[4] = {};
    for (int64_t c = 0; c < width; c += 64) {
      const __m512i own = _mm512_xor_si512(_mm512_loadu_si512(row + c), flip);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], own, _mm512_loadu_si512(z[i] + c));
    }
    // Four sums of sixteen lanes at once.
    const __m512i ab =
        _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]), _mm512_unpackhi_epi32(sum[0], sum[1]));
    const __m512i cd =
        _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]), _mm512_unpackhi_epi32(sum[2], sum[3]));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i sums4 =
        _mm_set_epi32(sums[list[t + 3]], sums[list[t + 2]], sums[list[t + 1]], sums[list[t]]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + t), _mm_sub_epi32(four, _mm_slli_epi32(sums4, 7)));
  }
  for (; t < count; ++t) {
    const int8_t* const z = rows + list[t] * width;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t c = 0; c < width; c += 64) {
      const __m512i own = _mm512_xor_si512(_mm512_loadu_si512(row + c), flip);
      sum = _mm512_dpbusd_epi32(sum, own, _mm512_loadu_si512(z + c));
    }
    out[t] = _mm512_reduce_add_epi32(sum) - 128 * sums[list[t]];
  }
}

OBVERSE_CHUNK_DOTS

}  // namespace
}  // namespace isa_avx512vnni

extern const JoinKernels kJoinKernelsAvx512Vnni;
const JoinKernels kJoinKernelsAvx512Vnni = {
    isa_avx512vnni::kGroup,
    1,
    128,
    isa_avx512vnni::pack_rows,
    isa_avx512vnni::pack_columns,
    isa_avx512vnni::filter,
    isa_avx512vnni::dots,
    isa_avx512vnni::chunk_dots,
    4000.0,
};

}  // namespace obverse
