// What test_linear_ce.cpp runs and holds it against: cases, their inputs and outputs, and the truth in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "obverse/linear_ce.hpp"

namespace obverse::testing {

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

inline float rounded_to_bfloat16(double x) {
  float f = static_cast<float>(x);
  uint32_t bits = 0;
  std::memcpy(&bits, &f, 4);
  bits = (bits + 0x7fffU + (bits >> 16 & 1U)) & 0xffff0000U;
  std::memcpy(&f, &bits, 4);
  return f;
}

/// A matrix in either dtype with unread, poisoned gaps between its rows and a guard behind it.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, bool bfloat16, int64_t gap = 0)
      : rows_(rows), columns_(columns), stride_(columns + gap), bfloat16_(bfloat16) {
    data_.assign(static_cast<size_t>((rows_ * stride_ + kGuard) * (bfloat16 ? 2 : 4)), 0);
    for (int64_t i = 0; i < rows_ * stride_ + kGuard; ++i) put(i, kPoison);
  }
  void set(int64_t i, int64_t j, float x) { put(i * stride_ + j, x); }
  double get(int64_t i, int64_t j) const { return take(i * stride_ + j); }
  void* data() { return data_.data(); }
  CeMatrix view() {
    return {data_.data(), bfloat16_ ? CeDtype::kBfloat16 : CeDtype::kFloat32, rows_, columns_, stride_};
  }
  bool guarded() const {
    for (int64_t i = 0; i < kGuard; ++i)
      if (!std::isnan(take(rows_ * stride_ + i))) return false;
    return true;
  }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  const std::vector<unsigned char>& bytes() const { return data_; }

 private:
  static constexpr int64_t kGuard = 64;
  void put(int64_t at, float x) {
    if (bfloat16_) {
      uint32_t bits = 0x7fc00000U;
      const float kept = rounded_to_bfloat16(static_cast<double>(x));
      if (!std::isnan(x)) std::memcpy(&bits, &kept, 4);
      const auto half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(data_.data() + at * 2, &half, 2);
    } else {
      std::memcpy(data_.data() + at * 4, &x, 4);
    }
  }
  double take(int64_t at) const {
    float x = 0.0F;
    if (bfloat16_) {
      uint16_t half = 0;
      std::memcpy(&half, data_.data() + at * 2, 2);
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(&x, &bits, 4);
    } else {
      std::memcpy(&x, data_.data() + at * 4, 4);
    }
    return static_cast<double>(x);
  }
  int64_t rows_, columns_, stride_;
  bool bfloat16_;
  std::vector<unsigned char> data_;
};

struct Case {
  int64_t n = 1, d = 1, v = 1;
  bool bfloat16 = false, bias = true, class_weight = false, sample_weight = false;
  int64_t hidden_gap = 0, head_gap = 0, rows_a_chunk = 0;
  double ignored = 0.0;  // share of the rows
  float size = 1.0F;     // of the logits, about
  float shift = 0.0F;    // of all of them, by the bias
  float step = 0.0F;     // of the first half of the classes, by the bias
  bool masked_class = false;
  CeRule rule;
  int threads = 1;
  Isa isa = Isa::kAvx512Bf16;
  bool want_hidden = true, want_head = true, want_bias = true;
  std::string name() const {
    return "n=" + std::to_string(n) + " d=" + std::to_string(d) + " v=" + std::to_string(v) +
           " bf16=" + std::to_string(bfloat16) + " isa=" + std::to_string(static_cast<int>(isa)) +
           " threads=" + std::to_string(threads) + " chunk=" + std::to_string(rows_a_chunk) +
           " scheme=" + std::to_string(static_cast<int>(rule.scheme)) +
           " smoothing=" + std::to_string(rule.smoothing) + " z=" + std::to_string(rule.z_loss) +
           " class_weight=" + std::to_string(class_weight);
  }
};

/// A case's inputs and our outputs.
struct Trial {
  Trial(const Case& which, uint32_t seed);
  void run();

  Case what;
  Matrix hidden, head, bias;
  Matrix hidden_gradient, head_gradient, bias_gradient;
  std::vector<int64_t> target;
  std::vector<float> sample_weight, log_quality, log_diversity, class_weight, upstream, fields;
  std::vector<int8_t> clipped;
};

inline Trial::Trial(const Case& which, uint32_t seed)
    : what(which),
      hidden(what.n, what.d, what.bfloat16, what.hidden_gap),
      head(what.v, what.d, what.bfloat16, what.head_gap),
      bias(1, what.v, what.bfloat16),
      hidden_gradient(what.n, what.d, what.bfloat16),
      head_gradient(what.v, what.d, what.bfloat16),
      bias_gradient(1, what.v, what.bfloat16) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  const float size = what.size / std::sqrt(static_cast<float>(std::max<int64_t>(what.d, 1)));
  for (int64_t v = 0; v < what.v; ++v) {
    bias.set(0, v, what.shift + (v < what.v / 2 ? what.step : 0.0F) + 0.3F * normal(generator));
    for (int64_t k = 0; k < what.d; ++k) head.set(v, k, size * normal(generator));
    class_weight.push_back(v % 5 == 3 ? 0.0F : 0.25F + uniform(generator));
  }
  if (what.masked_class) bias.set(0, 3, -kInf);  // its class weight is 0
  for (int64_t i = 0; i < what.n; ++i) {
    const bool ignored = uniform(generator) < what.ignored;
    int64_t y = static_cast<int64_t>(generator()) % what.v;
    if (what.masked_class && y == 3) y = 0;
    target.push_back(ignored ? what.rule.ignore_index : y);
    for (int64_t k = 0; k < what.d; ++k)
      hidden.set(i, k, !ignored ? normal(generator) : k % 2 == 0 ? kPoison : kInf);
    sample_weight.push_back(i % 7 == 2 ? 0.0F : 2.0F * uniform(generator));
    log_quality.push_back(-3.0F * uniform(generator));
    log_diversity.push_back(-3.0F * uniform(generator));
    upstream.push_back(i % 6 == 1 ? 0.0F : normal(generator));
  }
}

inline void Trial::run() {
  LinearCe problem;
  problem.hidden = hidden.view();
  problem.head = head.view();
  problem.bias = what.bias ? bias.data() : nullptr;
  problem.rows_a_chunk = what.rows_a_chunk;
  CeInputs in;
  in.target = target.data();
  in.sample_weight = what.sample_weight ? sample_weight.data() : nullptr;
  in.log_quality = log_quality.data();
  in.log_diversity = log_diversity.data();
  in.class_weight = what.class_weight ? class_weight.data() : nullptr;
  fields.assign(static_cast<size_t>(kCeFields * what.n), kPoison);
  clipped.assign(static_cast<size_t>(what.n), 77);
  LinearCeGradients gradients;
  if (what.want_hidden) gradients.hidden = hidden_gradient.data();
  if (what.want_head) gradients.head = head_gradient.data();
  if (what.want_bias) gradients.bias = bias_gradient.data();
  linear_ce(problem, in, what.rule, {upstream.data(), 1}, {fields.data(), clipped.data()}, gradients,
            {what.threads, what.isa});
}

/// The truth of a case. `composed`: logits and their gradients go through bfloat16, as in a composition of
/// separate operations in that dtype.
struct Truth {
  Truth(const Trial& trial, bool composed);
  std::vector<double> loss, weight, log_prob, lse;
  std::vector<double> dz, dz_size;                        // [N, V], and the sum of its terms' sizes
  std::vector<double> hidden, head, bias;                 // gradients
  std::vector<double> hidden_size, head_size, bias_size;  // the sums of their terms' sizes
  double largest_logit = 0.0;

 private:
  void row(const Trial& trial, int64_t i, bool composed);
};

inline double weight_of(const Trial& t, int64_t i, double log_prob, double miss) {
  const auto at = static_cast<size_t>(i);
  const CeRule& rule = t.what.rule;
  const double s = t.what.sample_weight ? static_cast<double>(t.sample_weight[at]) : 1.0;
  const double gamma = static_cast<double>(rule.gamma);
  const auto held = [&](double below) {
    const double log_weight = gamma * (static_cast<double>(t.log_quality[at]) - below);
    return s * std::exp(std::min(std::max(log_weight, static_cast<double>(rule.log_low)),
                                 static_cast<double>(rule.log_high)));
  };
  switch (rule.scheme) {
    case CeScheme::kImp:
      return held(static_cast<double>(t.log_diversity[at]));
    case CeScheme::kDimp:
      return held(log_prob);
    case CeScheme::kFocal:
      return s * std::pow(miss, gamma);
    default:
      return s;
  }
}

inline void Truth::row(const Trial& t, int64_t i, bool composed) {
  const Case& c = t.what;
  const auto V = static_cast<size_t>(c.v);
  std::vector<double> z(V), p(V), tau(V);
  const auto y = static_cast<size_t>(t.target[static_cast<size_t>(i)]);
  const double e = static_cast<double>(c.rule.smoothing), zl = static_cast<double>(c.rule.z_loss);
  double top = -INFINITY, T = 0.0;
  for (size_t v = 0; v < V; ++v) {
    z[v] = c.bias ? t.bias.get(0, static_cast<int64_t>(v)) : 0.0;
    for (int64_t k = 0; k < c.d; ++k) z[v] += t.hidden.get(i, k) * t.head.get(static_cast<int64_t>(v), k);
    if (composed) z[v] = static_cast<double>(rounded_to_bfloat16(z[v]));
    if (std::isfinite(z[v])) largest_logit = std::max(largest_logit, std::abs(z[v]));
    top = std::max(top, z[v]);
    const double cv = c.class_weight ? static_cast<double>(t.class_weight[v]) : 1.0;
    tau[v] = cv * ((v == y ? 1.0 - e : 0.0) + e / static_cast<double>(V));
    T += tau[v];
  }
  double others = 0.0, dot = 0.0;
  for (size_t v = 0; v < V; ++v) {
    p[v] = std::exp(z[v] - top);
    if (v != y) others += p[v];
  }
  const double total = others + p[y], row_lse = top + std::log(total), miss = others / total;
  for (size_t v = 0; v < V; ++v) {
    p[v] /= total;
    if (tau[v] != 0.0) dot += tau[v] * (row_lse - z[v]);
  }
  const double lp = z[y] - row_lse, l = dot + zl * row_lse * row_lse, w = weight_of(t, i, lp, miss);
  const double g = static_cast<double>(t.upstream[static_cast<size_t>(i)]);
  const double gamma = static_cast<double>(c.rule.gamma),
               s = c.sample_weight ? t.sample_weight[static_cast<size_t>(i)] : 1.0;
  const bool focal = c.rule.scheme == CeScheme::kFocal && !c.rule.focal_detached;
  const double extra = focal && miss > 0.0 ? gamma * s * std::pow(miss, gamma - 1.0) * p[y] * l : 0.0;
  for (size_t v = 0; v < V; ++v) {
    const double lift = 2.0 * zl * row_lse * p[v];
    double x = w * (T * p[v] - tau[v] + lift) + extra * p[v];
    double size = std::abs(w) * (T * p[v] + tau[v] + std::abs(lift)) + std::abs(extra * p[v]);
    if (v == y) {
      x = w * ((T - tau[v]) * p[v] - tau[v] * miss + lift) - extra * miss;
      // The field t is e (C - c_y) / V less T (1 - p_y).
      size = std::abs(w) * (T - tau[v] + T * miss + std::abs(lift)) + std::abs(extra * miss);
    }
    const size_t place = static_cast<size_t>(i) * V + v;
    dz[place] = composed ? static_cast<double>(rounded_to_bfloat16(g * x)) : g * x;
    dz_size[place] = std::abs(g) * size;
  }
  const auto at = static_cast<size_t>(i);
  loss[at] = w * l;
  weight[at] = w * (c.class_weight ? static_cast<double>(t.class_weight[y]) : 1.0);
  log_prob[at] = lp;
  lse[at] = row_lse;
}

inline Truth::Truth(const Trial& t, bool composed) {
  const Case& c = t.what;
  const auto N = static_cast<size_t>(c.n), V = static_cast<size_t>(c.v), D = static_cast<size_t>(c.d);
  for (auto* x : {&loss, &weight, &log_prob, &lse}) x->assign(N, 0.0);
  for (auto* x : {&dz, &dz_size}) x->assign(N * V, 0.0);
  for (auto* x : {&hidden, &hidden_size}) x->assign(N * D, 0.0);
  for (auto* x : {&head, &head_size}) x->assign(V * D, 0.0);
  for (auto* x : {&bias, &bias_size}) x->assign(V, 0.0);
  for (int64_t i = 0; i < c.n; ++i) {
    if (t.target[static_cast<size_t>(i)] == c.rule.ignore_index) continue;
    row(t, i, composed);
    for (size_t v = 0; v < V; ++v) {
      const double x = dz[static_cast<size_t>(i) * V + v], size = dz_size[static_cast<size_t>(i) * V + v];
      bias[v] += x;
      bias_size[v] += size;
      for (size_t k = 0; k < D; ++k) {
        const double a = x * t.head.get(static_cast<int64_t>(v), static_cast<int64_t>(k));
        const double b = x * t.hidden.get(i, static_cast<int64_t>(k));
        hidden[static_cast<size_t>(i) * D + k] += a;
        hidden_size[static_cast<size_t>(i) * D + k] +=
            size * std::abs(t.head.get(static_cast<int64_t>(v), static_cast<int64_t>(k)));
        head[v * D + k] += b;
        head_size[v * D + k] += size * std::abs(t.hidden.get(i, static_cast<int64_t>(k)));
      }
    }
  }
}

}  // namespace obverse::testing
