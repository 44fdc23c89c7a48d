// A problem of the weighted cross-entropy for the native tests: made at random, run in any of its ways, and its results
// held against weighted_ce_truth.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "weighted_ce_truth.hpp"

namespace obverse::testing {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kIgnored = -100;

/// A fresh seed each run, said so that a failure can be run again.
inline uint64_t fresh_seed() {
  const uint64_t seed = std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return seed;
}
inline std::mt19937_64 random_bits{fresh_seed()};

inline float normal() { return std::normal_distribution<float>{}(random_bits); }

// ---- numbers in memory ----

inline uint16_t to_half(float x, CeDtype dtype) {
  if (dtype == CeDtype::kFloat16) {
    const auto h = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &h, 2);
    return bits;
  }
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline float from_half(uint16_t bits, CeDtype dtype) {
  if (dtype == CeDtype::kFloat16) {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    return static_cast<float>(h);
  }
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

/// A matrix of any dtype whose rows have a gap behind them, filled with `poison`, and an odd start.
struct Matrix {
  CeDtype dtype;
  int64_t rows, columns, stride;
  std::vector<uint16_t> memory;

  Matrix(CeDtype type, int64_t n, int64_t v, int64_t gap, float poison = kNan)
      : dtype(type), rows(n), columns(v), stride(v + gap) {
    memory.resize(static_cast<size_t>((n * stride + 3) * width()));
    for (int64_t i = -1; i < n * stride + 2; ++i) put(i, poison);
  }
  int64_t width() const { return dtype == CeDtype::kFloat32 ? 2 : 1; }
  uint16_t* at(int64_t i) { return memory.data() + (i + 1) * width(); }
  void put(int64_t i, float x) {
    const uint16_t h = to_half(x, dtype);
    std::memcpy(at(i), dtype == CeDtype::kFloat32 ? static_cast<const void*>(&x) : &h,
                static_cast<size_t>(2 * width()));
  }
  float get(int64_t i) {
    float x;
    if (dtype != CeDtype::kFloat32) return from_half(*at(i), dtype);
    std::memcpy(&x, at(i), 4);
    return x;
  }
  float get(int64_t row, int64_t column) { return get(row * stride + column); }
  CeMatrix view() { return {at(0), dtype, rows, columns, stride}; }
  /// Whether all that lies between the rows is still poison (NaN).
  bool gaps_untouched() {
    if (get(-1) == get(-1) || get(rows * stride) == get(rows * stride)) return false;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = columns; j < stride; ++j) {
        if (get(r, j) == get(r, j)) return false;
      }
    }
    return true;
  }
};

// ---- a problem ----

struct Problem {
  CeRule rule;
  Matrix logits;
  Matrix soft;
  bool is_soft = false;
  std::vector<int64_t> target;
  std::vector<float> sample_weight, log_quality, log_diversity, class_weight, upstream;

  Problem(CeDtype dtype, int64_t n, int64_t v, int64_t gap, CeScheme scheme, float scale)
      : logits(dtype, n, v, gap), soft(CeDtype::kFloat32, 0, 0, 0) {
    rule.scheme = scheme;
    rule.gamma = 1.3F;
    rule.log_low = -2.3F;
    rule.log_high = 2.3F;
    for (int64_t i = 0; i < n; ++i) {
      const bool ignored = i % 5 == 3;
      target.push_back(ignored ? kIgnored : static_cast<int64_t>(random_bits() % static_cast<uint64_t>(v)));
      for (int64_t j = 0; j < v; ++j) logits.put(i * logits.stride + j, ignored ? kNan : scale * normal());
      sample_weight.push_back(i % 4 == 0 ? 0.0F : normal() * (i % 7 == 1 ? 1e4F : 1.0F));
      log_quality.push_back(-6.0F * std::fabs(normal()));
      log_diversity.push_back(-6.0F * std::fabs(normal()));
      upstream.push_back(i % 6 == 0 ? 0.0F : normal());
    }
  }
  void make_soft(CeDtype dtype) {
    is_soft = true;
    soft = Matrix(dtype, logits.rows, logits.columns, 3);
    for (int64_t i = 0; i < logits.rows; ++i) {
      for (int64_t j = 0; j < logits.columns; ++j) {
        soft.put(i * soft.stride + j,
                 j % 3 == 1 ? 0.0F : std::fabs(normal()) / static_cast<float>(logits.columns));
        if (target[static_cast<size_t>(i)] == kIgnored) logits.put(i * logits.stride + j, normal());
      }
    }
  }
  void weigh_classes() {
    for (int64_t j = 0; j < logits.columns; ++j)
      class_weight.push_back(j % 4 == 2 ? 0.0F : std::fabs(normal()));
  }
  CeInputs inputs() {
    CeInputs in;
    if (is_soft)
      in.soft_target = soft.view();
    else
      in.target = target.data();
    if (rule.scheme != CeScheme::kPlain) in.sample_weight = sample_weight.data();
    if (rule.scheme == CeScheme::kImp || rule.scheme == CeScheme::kDimp) in.log_quality = log_quality.data();
    if (rule.scheme == CeScheme::kImp) in.log_diversity = log_diversity.data();
    if (!class_weight.empty()) in.class_weight = class_weight.data();
    return in;
  }
  Truth truth(int64_t i) {
    const auto row = static_cast<size_t>(i);
    TruthInputs in;
    for (int64_t j = 0; j < logits.columns; ++j) {
      in.z.push_back(logits.get(i, j));
      if (is_soft) in.t.push_back(soft.get(i, j));
    }
    in.y = target[row];
    if (rule.scheme != CeScheme::kPlain) in.s = sample_weight[row];
    in.log_quality = log_quality[row];
    in.log_diversity = log_diversity[row];
    in.upstream = upstream[row];
    if (!class_weight.empty()) in.class_weight = &class_weight;
    return truth_of(rule, in);
  }
};

struct Results {
  std::vector<float> fields;
  std::vector<int8_t> clipped;
  Matrix gradient;
  explicit Results(Problem& p, int64_t gap)
      : fields(static_cast<size_t>(kCeFields * p.logits.rows), kNan),
        clipped(static_cast<size_t>(p.logits.rows), 77),
        gradient(p.logits.dtype, p.logits.rows, p.logits.columns, gap) {}
  CeOutputs out() { return {fields.data(), clipped.data()}; }
};

enum class Way { kTwoPasses, kFused, kInPlace };

inline Results results_of(Problem& p, Way way, const CeRun& run) {
  Results got(p, way == Way::kInPlace ? p.logits.stride - p.logits.columns : 5);
  const CeUpstream upstream{p.upstream.data(), 1};
  Matrix& g = got.gradient;
  if (way == Way::kTwoPasses) {
    ce_forward(p.logits.view(), p.inputs(), p.rule, got.out(), run);
    ce_backward(p.logits.view(), p.inputs(), p.rule, got.fields.data(), upstream, g.at(0), g.stride, run);
  } else if (way == Way::kFused) {
    ce_fused(p.logits.view(), p.inputs(), p.rule, upstream, got.out(), g.at(0), g.stride, run);
  } else {
    g = p.logits;
    ce_fused(g.view(), p.inputs(), p.rule, upstream, got.out(), g.at(0), g.stride, run);
  }
  return got;
}

// ---- comparing ----

/// Units of 2^-24 allowed of what a figure is made of (and what float32 can't hold anyway).
constexpr Real kUlps = 12.0L / (1 << 24);

inline bool close(Real got, Real want, Real made_of, Real more = 0) {
  if (want != want || std::isinf(want)) return got == want || (got != got && want != want);
  // The kernels know no subnormals.
  return std::fabs(got - want) <= kUlps * (made_of + std::fabs(want)) + more + 1e-36L;
}

inline Real half_ulp(CeDtype dtype, Real x) {
  if (dtype == CeDtype::kBfloat16) return std::fabs(x) * 0x1p-8L * 1.001L;
  if (dtype == CeDtype::kFloat16) return std::fmax(std::fabs(x) * 0x1p-11L, 0x1p-25L) * 1.001L;
  return 0;
}

inline bool row_matches(Problem& p, Results& got, int64_t i, const Truth& want) {
  const auto n = static_cast<size_t>(p.logits.rows), row = static_cast<size_t>(i);
  bool good = true;
  if (!p.is_soft && p.target[row] == kIgnored) {
    for (int k = 0; k < kLse + 1; ++k) good &= got.fields[static_cast<size_t>(k) * n + row] == 0.0F;
    for (int64_t j = 0; j < p.logits.columns; ++j) good &= got.gradient.get(i, j) == 0.0F;
    return good && got.clipped[row] == 0;
  }
  for (int k = 0; k < kCeFields; ++k) {
    const float x = got.fields[static_cast<size_t>(k) * n + row];
    if (close(x, want.fields[k], want.made_of[k])) continue;
    std::fprintf(stderr, "row %d field %d: %.9g, expected %.9Lg\n", static_cast<int>(i), k,
                 static_cast<double>(x), want.fields[k]);
    good = false;
  }
  const bool at_bound = std::fabs(want.log_weight - p.rule.log_low) < 1e-4L ||
                        std::fabs(want.log_weight - p.rule.log_high) < 1e-4L;
  if (!at_bound && got.clipped[row] != want.clipped) good = false;
  for (int64_t j = 0; j < p.logits.columns && good; ++j) {
    const Real g = want.gradient[static_cast<size_t>(j)],
               made_of = want.gradient_made_of[static_cast<size_t>(j)];
    if (p.logits.dtype == CeDtype::kFloat16 && std::fabs(g) > 65000) continue;  // float16 has no such number
    if (close(got.gradient.get(i, j), g, made_of, half_ulp(p.logits.dtype, g))) continue;
    std::fprintf(stderr, "row %d column %d (target %d): gradient %.9g, expected %.9Lg\n", static_cast<int>(i),
                 static_cast<int>(j), static_cast<int>(p.target[row]),
                 static_cast<double>(got.gradient.get(i, j)), g);
    good = false;
  }
  return good;
}

inline bool same_bits(const Results& x, const Results& y) {
  return std::memcmp(x.fields.data(), y.fields.data(), x.fields.size() * 4) == 0 && x.clipped == y.clipped &&
         x.gradient.memory == y.gradient.memory;
}

inline void check_problem(Problem& p, Isa isa) {
  const int before = failures();
  std::vector<Truth> want;
  for (int64_t i = 0; i < p.logits.rows; ++i) want.push_back(p.truth(i));
  for (const Way way : {Way::kTwoPasses, Way::kFused, Way::kInPlace}) {
    Results got = results_of(p, way, {1, isa});
    for (int64_t i = 0; i < p.logits.rows; ++i) CHECK(row_matches(p, got, i, want[static_cast<size_t>(i)]));
    CHECK(got.gradient.gaps_untouched());
    if (failures() == before) continue;
    std::fprintf(stderr,
                 "isa %d, way %d, dtype %d, V %d, scheme %d, smoothing %g, z-loss %g, soft %d, classes %d\n",
                 static_cast<int>(isa), static_cast<int>(way), static_cast<int>(p.logits.dtype),
                 static_cast<int>(p.logits.columns), static_cast<int>(p.rule.scheme),
                 static_cast<double>(p.rule.smoothing), static_cast<double>(p.rule.z_loss), p.is_soft,
                 !p.class_weight.empty());
    return;
  }
}

}  // namespace obverse::testing
