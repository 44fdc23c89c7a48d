#include "obverse/symmetric_eigen.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "obverse/error.hpp"

namespace obverse {
namespace {

/// x[0 .. n) . y[0 .. n), in eight sums: one would wait for itself at every step.
double dot(const double* x, const double* y, size_t n) {
  std::array<double, 8> sums{};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (size_t j = 0; j < 8; ++j) sums[j] += x[i + j] * y[i + j];
  }
  for (; i < n; ++i) sums[0] += x[i] * y[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/// product = A v for the leading n x n part of the lower triangle `a` of rows of `width`.
void multiply(const std::vector<double>& a, size_t width, const std::vector<double>& v, size_t n,
              std::vector<double>* product) {
  double* const out = product->data();
  for (size_t i = 0; i < n; ++i) {
    const double* const row = a.data() + i * width;
    const double scale = v[i];
    out[i] = dot(row, v.data(), i) + row[i] * scale;
    for (size_t j = 0; j < i; ++j) out[j] += row[j] * scale;
  }
}

/// Leaves the diagonal and, below it, the off-diagonal of a tridiagonal matrix with the same eigenvalues.
void reduce(std::vector<double>* matrix, size_t n, std::vector<double>* diagonal,
            std::vector<double>* below) {
  std::vector<double>& a = *matrix;
  std::vector<double> v(n), w(n);
  for (size_t i = n; i-- > 0;) {
    double* const row = a.data() + i * n;
    (*diagonal)[i] = row[i];
    if (i == 0) break;
    // A reflection of the first i coordinates leaves of this row only its last entry before the diagonal.
    const double rest = dot(row, row, i - 1);
    (*below)[i - 1] = row[i - 1];
    // Entries below 2^-100 of the largest change nothing, and the squares of far smaller ones (of a matrix of low
    // rank, once only rounding is left) would vanish and spoil the reflection.
    if (rest < 0x1p-200) continue;
    const double alpha = -std::copysign(std::sqrt(rest + row[i - 1] * row[i - 1]), row[i - 1]);
    (*below)[i - 1] = alpha;
    std::copy(row, row + i, v.begin());
    v[i - 1] -= alpha;
    const double beta = 2.0 / dot(v.data(), v.data(), i);
    multiply(a, n, v, i, &w);
    const double half = beta * beta * dot(v.data(), w.data(), i) / 2.0;
    for (size_t j = 0; j < i; ++j) w[j] = beta * w[j] - half * v[j];
    for (size_t r = 0; r < i; ++r) {
      double* const target = a.data() + r * n;
      const double vr = v[r], wr = w[r];
      for (size_t j = 0; j <= r; ++j) target[j] -= vr * w[j] + wr * v[j];
    }
  }
}

/// One implicit QR step on the part [first, last] of a tridiagonal matrix.
void step(std::vector<double>* diagonal, std::vector<double>* below, size_t first, size_t last) {
  std::vector<double>&d = *diagonal, &e = *below;
  const double gap = (d[last - 1] - d[last]) / 2.0, end = e[last - 1];
  const double shift = d[last] - end * end / (gap + std::copysign(std::sqrt(gap * gap + end * end), gap));
  double x = d[first] - shift, z = e[first];
  for (size_t k = first; k < last; ++k) {
    const double r = std::sqrt(x * x + z * z);
    const double c = r > 0.0 ? x / r : 1.0, s = r > 0.0 ? z / r : 0.0;
    if (k > first) e[k - 1] = r;
    const double upper = d[k], lower = d[k + 1], side = e[k];
    d[k] = c * c * upper + 2.0 * c * s * side + s * s * lower;
    d[k + 1] = s * s * upper - 2.0 * c * s * side + c * c * lower;
    e[k] = c * s * (lower - upper) + (c * c - s * s) * side;
    if (k + 1 < last) {
      x = e[k];
      z = s * e[k + 1];
      e[k + 1] *= c;
    }
  }
}

}  // namespace

std::vector<double> symmetric_eigenvalues(std::vector<double> a, size_t n) {
  require(a.size() == n * n, "a matrix of ", n, " rows must have ", n * n, " entries, got ", a.size());
  double most = 0.0;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      require(std::isfinite(a[i * n + j]), "entries must be finite, got ", a[i * n + j], " at (", i, ", ", j,
              ")");
      most = std::max(most, std::abs(a[i * n + j]));
    }
  }
  if (n == 0 || most == 0.0) return std::vector<double>(n, 0.0);
  // A power of two near the largest entry: squares neither overflow nor vanish, and no digit changes.
  const double scale = std::exp2(std::ilogb(most));
  for (double& entry : a) entry /= scale;
  std::vector<double> d(n), e(n);
  reduce(&a, n, &d, &e);
  double norm = 0.0;
  for (size_t i = 0; i < n; ++i) norm = std::max(norm, std::abs(d[i]) + std::abs(e[i]));
  const double negligible = std::numeric_limits<double>::epsilon() * norm / 2.0;
  size_t steps = 0;
  for (size_t last = n - 1; last > 0;) {
    require(++steps <= 100 * n, "the eigenvalues of a matrix of ", n, " rows were not found in ", 100 * n,
            " steps");
    if (std::abs(e[last - 1]) <= negligible) {
      --last;
      continue;
    }
    size_t first = last - 1;
    while (first > 0 && std::abs(e[first - 1]) > negligible) --first;
    step(&d, &e, first, last);
  }
  for (double& value : d) value *= scale;
  std::sort(d.begin(), d.end(), std::greater<>());
  return d;
}

}  // namespace obverse
