// The weighted cross-entropy as the header comment of weighted_ce.hpp says it, a row at a time in long double,
// for the native tests. With every figure goes what it is made of: errors are counted in ulp of that.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "obverse/weighted_ce.hpp"

namespace obverse::testing {

using Real = long double;

struct TruthInputs {
  std::vector<Real> z;
  std::vector<Real> t;  // soft; empty for a hard target
  int64_t y = 0;        // ignored: ignore_index
  Real s = 1, log_quality = 0, log_diversity = 0, upstream = 1;
  const std::vector<float>* class_weight = nullptr;
};

struct Truth {
  Real fields[kCeFields] = {};
  Real made_of[kCeFields] = {};
  int clipped = 0;
  Real log_weight = 0;  // before it was clipped
  std::vector<Real> gradient, gradient_made_of;
};

inline Real times(Real factor, Real x) { return factor == 0 ? Real{0} : factor * x; }

inline Real truth_weight(const CeRule& rule, const TruthInputs& in, Real log_p, Real miss, Truth& out) {
  if (rule.scheme == CeScheme::kFocal) return in.s * std::pow(miss, static_cast<Real>(rule.gamma));
  if (rule.scheme != CeScheme::kImp && rule.scheme != CeScheme::kDimp) return in.s;
  const Real below = rule.scheme == CeScheme::kImp ? in.log_diversity : log_p;
  out.log_weight = static_cast<Real>(rule.gamma) * (in.log_quality - below);
  Real x = out.log_weight;
  if (x < rule.log_low) out.clipped = -1, x = rule.log_low;
  if (x > rule.log_high) out.clipped = 1, x = rule.log_high;
  return in.s * std::exp(x);
}

/// The truth of a counted row. `reach` in what follows: a float of the size of the row's largest figure.
inline Truth truth_of(const CeRule& rule, const TruthInputs& in) {
  const size_t columns = in.z.size();
  const bool soft = !in.t.empty();
  const Real e = rule.smoothing, zl = rule.z_loss, v = static_cast<Real>(columns);
  const auto c = [&](size_t j) {
    return in.class_weight != nullptr ? static_cast<Real>((*in.class_weight)[j]) : 1;
  };
  Truth out;
  Real top = in.z[0], sum = 0, others = 0, reach = 1;
  for (const Real z : in.z) top = z > top ? z : top;
  for (size_t j = 0; j < columns; ++j) {
    const Real x = std::exp(in.z[j] - top);
    sum += x;
    if (soft || static_cast<int64_t>(j) != in.y) others += x;
    if (std::isfinite(in.z[j])) reach = std::fmax(reach, std::fabs(in.z[j]) + 1);
  }
  const Real log_sum = std::log(sum), lse = top + log_sum, miss = others / sum;
  const auto target = [&](size_t j) {
    return soft ? in.t[j] : static_cast<Real>(static_cast<int64_t>(j) == in.y ? 1 : 0);
  };
  Real log_p = 0, loss = 0, loss_size = 0, share = 0, tau_sum = 0, c_sum = 0;
  for (size_t j = 0; j < columns; ++j) {
    // log p of a near certain target: log1p keeps its digits
    const bool hard_y = !soft && static_cast<int64_t>(j) == in.y;
    const Real log_p_j =
        hard_y && miss < 0.5L ? -std::log1p(others / (sum - others)) : (in.z[j] - top) - log_sum;
    const Real tau = c(j) * ((1 - e) * target(j) + e / v);
    log_p += times(target(j), log_p_j);
    loss -= times(tau, log_p_j);
    loss_size += std::fabs(times(tau, std::fabs(log_p_j) + (hard_y && e == 0 ? 0 : reach)));
    share += c(j) * target(j);
    tau_sum += tau;
    c_sum += c(j);
  }
  loss += zl * lse * lse;
  loss_size += std::fabs(zl * lse) * (std::fabs(lse) + reach);
  const Real w = truth_weight(rule, in, log_p, miss, out), p = 1 - miss;
  Real focal = 0;
  if (rule.scheme == CeScheme::kFocal && !rule.focal_detached && rule.gamma != 0) {
    focal = rule.gamma * in.s * std::pow(miss, static_cast<Real>(rule.gamma) - 1) * p * loss;
  }
  // The relative error of w: log p's error, in ulp of reach, goes through the exponential.
  const Real w_size = std::fabs(w) * (rule.scheme == CeScheme::kPlain ? 1 : reach);
  const Real a = w * (tau_sum + 2 * zl * lse) + focal;
  const Real a_size = w_size * (tau_sum + 2 * zl * (std::fabs(lse) + reach)) + std::fabs(focal) * reach +
                      (focal != 0 ? std::fabs(focal / loss) * loss_size : 0);
  const Real t = w * e * (c_sum - share) / v + 2 * w * zl * lse * p - (w * tau_sum + focal) * miss;
  const Real t_size =
      w_size * e * (c_sum + share) / v + a_size * miss + 2 * w_size * zl * (std::fabs(lse) + reach);
  const Real fields[kCeFields] = {w * loss, w * share, log_p, lse, top, log_sum, a, soft ? 0 : t, w};
  const Real sizes[kCeFields] = {w_size * std::fabs(loss) + std::fabs(w) * loss_size,
                                 w_size * std::fabs(share),
                                 soft || miss > 0.3L ? reach : std::fabs(log_p) * reach,
                                 reach,
                                 0,
                                 std::fabs(log_sum) + miss,
                                 a_size,
                                 t_size,
                                 w_size};
  for (int k = 0; k < kCeFields; ++k) out.fields[k] = fields[k], out.made_of[k] = sizes[k];
  for (size_t j = 0; j < columns; ++j) {
    const Real p_j = std::exp((in.z[j] - top) - log_sum), g = in.upstream;
    const Real tau = soft ? c(j) * ((1 - e) * target(j) + e / v) : c(j) * e / v;
    const bool at = !soft && static_cast<int64_t>(j) == in.y;
    out.gradient.push_back(at ? g * t : g * (a * p_j - w * tau));
    out.gradient_made_of.push_back(std::fabs(g) *
                                   (at ? t_size : a_size * p_j * reach + w_size * std::fabs(tau)));
  }
  return out;
}

}  // namespace obverse::testing
