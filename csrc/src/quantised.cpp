// Norms, int8 rows and exact cosines: rows to threads, checks of the instruction set, and the error's arithmetic.
#include "obverse/quantised.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "parallel.hpp"
#include "quantised_kernels.hpp"

#if defined(OBVERSE_X86_64)
#include <cpuid.h>
#endif

namespace obverse {
namespace {

/// Values that pay for waking a thread.
constexpr int64_t kGrain = 1 << 16;

int64_t grain_rows(int64_t columns) { return std::max<int64_t>(kGrain / std::max<int64_t>(columns, 1), 1); }

int64_t row_bytes(const Vectors& x) { return x.columns * (x.dtype == VectorDtype::kFloat32 ? 4 : 2); }

const char* row_at(const Vectors& x, int64_t row) {
  return static_cast<const char*>(x.data) + row * row_bytes(x);
}

/// The next float that is not below `value`.
float float_up(double value) {
  const auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) >= value) return nearest;
  return std::nextafter(nearest, std::numeric_limits<float>::infinity());
}

#if defined(OBVERSE_X86_64)
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1U) != 0;
}
bool has_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c >> 11 & 1U) != 0;
}
#endif

}  // namespace

VectorIsa best_vector_isa() {
#if defined(OBVERSE_X86_64)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c())
    return VectorIsa::kPortable;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_vnni();
  return wide ? VectorIsa::kAvx512Vnni : VectorIsa::kAvx2;
#else
  return VectorIsa::kPortable;
#endif
}

const VectorKernels& vector_kernels(VectorIsa bound) {
#if defined(OBVERSE_X86_64)
  switch (std::min(bound, best_vector_isa())) {
    case VectorIsa::kAvx512Vnni:
      return kVectorKernelsAvx512Vnni;
    case VectorIsa::kAvx2:
      return kVectorKernelsAvx2;
    default:
      return kVectorKernelsPortable;
  }
#else
  static_cast<void>(bound);
  return kVectorKernelsPortable;
#endif
}

int64_t vector_norms(const Vectors& x, double* norms, const VectorRun& run) {
  const VectorKernels& kernels = vector_kernels(run.isa);
  const auto dot = x.dtype == VectorDtype::kFloat32 ? kernels.dot_float : kernels.dot_half;
  std::vector<int64_t> bad(static_cast<size_t>(std::max(run.threads, 1)), x.rows);
  parallel_for(run.threads, x.rows, grain_rows(x.columns), [&](int64_t first, int64_t last, int thread) {
    for (int64_t i = first; i < last; ++i) {
      norms[i] = std::sqrt(dot(row_at(x, i), row_at(x, i), x.columns));
      const bool sound = std::isfinite(norms[i]) && norms[i] > 0.0;
      if (!sound) bad[static_cast<size_t>(thread)] = std::min(bad[static_cast<size_t>(thread)], i);
    }
  });
  const int64_t worst = *std::min_element(bad.begin(), bad.end());
  return worst < x.rows ? worst : -1;
}

void quantise_rows(const Vectors& x, const double* norms, const Rotation& rotation, int8_t* q, float* error,
                   const VectorRun& run) {
  const VectorKernels& kernels = vector_kernels(run.isa);
  const auto unit = x.dtype == VectorDtype::kFloat32 ? kernels.unit_float : kernels.unit_half;
  const int64_t columns = x.columns, width = rotation.width;
  // Rounding of y: x / |x| twice, sums of 64 products, and of the sums; |R|_F = sqrt(columns) but for the defect.
  const double terms = 64.0 + static_cast<double>(columns) / 64.0 + 6.0;
  const double rounding =
      1.01 * terms * 0x1p-24 * std::sqrt(static_cast<double>(columns) * (1.0 + rotation.defect)) + 1e-30;
  const int64_t groups = (x.rows + kRotateRows - 1) / kRotateRows;
  parallel_for(run.threads, groups, 4, [&](int64_t first, int64_t last, int) {
    std::vector<char> edge(static_cast<size_t>(kRotateRows * row_bytes(x)));
    std::vector<float> in(static_cast<size_t>(kRotateRows * columns)),
        out(static_cast<size_t>(kRotateRows * width));
    std::vector<double> edge_norms(kRotateRows, 1.0);
    for (int64_t g = first; g < last; ++g) {
      const int64_t row = g * kRotateRows, count = std::min(kRotateRows, x.rows - row);
      const char* data = row_at(x, row);
      const double* group_norms = norms + row;
      if (count < kRotateRows) {  // the last rows, with zeros after them
        std::copy_n(data, count * row_bytes(x), edge.begin());
        std::copy_n(group_norms, count, edge_norms.begin());
        data = edge.data();
        group_norms = edge_norms.data();
      }
      unit(data, group_norms, columns, in.data());
      kernels.rotate(in.data(), rotation.matrix, columns, width, out.data());
      for (int64_t r = 0; r < count; ++r) {
        const double square =
            kernels.quantise(out.data() + r * width, width, rotation.scale, q + (row + r) * width);
        const double e = std::sqrt(square) * (1.0 + 1e-12) + rounding;
        // 2^-25: half a step of float below 1, since the cosine is rounded to float; 1e-12: its double arithmetic.
        error[row + r] =
            float_up((1.0 + rotation.defect) * e + 0.5 * e * e + 0.5 * rotation.defect + 0x1p-25 + 1e-12);
      }
    }
  });
}

void rank_candidates(const Vectors& x, const double* x_norms, const Vectors& y, const double* y_norms,
                     const int32_t* candidates, int64_t m, bool self, int64_t k, int32_t* indices,
                     float* similarities, const VectorRun& run) {
  const VectorKernels& kernels = vector_kernels(run.isa);
  const auto dot = x.dtype == VectorDtype::kFloat32 ? kernels.dot_float : kernels.dot_half;
  parallel_for(run.threads, x.rows, std::max<int64_t>(grain_rows(x.columns * std::max<int64_t>(m, 1)), 1),
               [&](int64_t first, int64_t last, int) {
                 std::vector<int32_t> own;
                 std::vector<std::pair<float, int32_t>> ranked;  // (-similarity, row)
                 for (int64_t i = first; i < last; ++i) {
                   own.clear();
                   for (int64_t c = 0; c < m; ++c) {
                     const int32_t j = candidates[i * m + c];
                     if (j < 0 || j >= y.rows || (self && j == i)) continue;
                     own.push_back(j);
                     __builtin_prefetch(row_at(y, j));
                     __builtin_prefetch(row_at(y, j) + 64);
                   }
                   std::sort(own.begin(), own.end());
                   own.erase(std::unique(own.begin(), own.end()), own.end());
                   ranked.clear();
                   for (const int32_t j : own) {
                     const double product = dot(row_at(x, i), row_at(y, j), x.columns);
                     ranked.emplace_back(-static_cast<float>(product / (x_norms[i] * y_norms[j])), j);
                   }
                   const int64_t kept = std::min<int64_t>(k, static_cast<int64_t>(ranked.size()));
                   std::partial_sort(ranked.begin(), ranked.begin() + kept, ranked.end());
                   for (int64_t c = 0; c < k; ++c) {
                     indices[i * k + c] = c < kept ? ranked[static_cast<size_t>(c)].second : -1;
                     similarities[i * k + c] = c < kept ? -ranked[static_cast<size_t>(c)].first
                                                        : -std::numeric_limits<float>::infinity();
                   }
                 }
               });
}

}  // namespace obverse
