#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>

#include "check.hpp"
#include "obverse/error.hpp"
#include "obverse/symmetric_eigen.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

/// The second differences of n points: eigenvalues 2 - 2 cos(pi k / (n + 1)), here in the given order of points.
std::vector<double> differences(size_t n, const std::vector<size_t>& order) {
  std::vector<double> a(n * n);
  for (size_t i = 0; i < n; ++i) {
    a[order[i] * n + order[i]] = 2.0;
    if (i > 0) a[order[i] * n + order[i - 1]] = a[order[i - 1] * n + order[i]] = -1.0;
  }
  return a;
}

void test_known_spectra() {
  std::mt19937 random(std::random_device{}());
  for (const size_t n : {1, 2, 3, 8, 9, 57, 130}) {
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; ++i) order[i] = i;
    for (int shuffled = 0; shuffled < 2; ++shuffled) {
      for (const double scale : {1.0, 1e-290, 1e290}) {
        std::vector<double> a = differences(n, order);
        for (double& entry : a) entry *= scale;
        for (size_t i = 0; i < n; ++i) {  // the upper triangle isn't read
          for (size_t j = i + 1; j < n; ++j) a[i * n + j] = std::numeric_limits<double>::quiet_NaN();
        }
        const std::vector<double> got = symmetric_eigenvalues(a, n);
        CHECK(got.size() == n);
        for (size_t k = 0; k < n; ++k) {
          const double angle = std::numbers::pi * static_cast<double>(n - k) / static_cast<double>(n + 1);
          const double expected = 2.0 - 2.0 * std::cos(angle);
          CHECK(std::abs(got[k] / scale - expected) <= 16.0 * static_cast<double>(n) * 0x1p-52);
        }
      }
      std::shuffle(order.begin(), order.end(), random);
    }
  }
}

/// Sums of eigenvalues, and of their squares, are known from the entries; rank one and repeated values too.
void test_invariants() {
  std::mt19937 random(std::random_device{}());
  std::normal_distribution<double> normal;
  for (const size_t n : {5, 64, 101}) {
    std::vector<double> a(n * n), outer(n * n), v(n);
    double trace = 0.0, squares = 0.0, length = 0.0;
    for (double& x : v) {
      x = normal(random);
      length += x * x;
    }
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j <= i; ++j) {
        a[i * n + j] = normal(random);
        squares += (i == j ? 1.0 : 2.0) * a[i * n + j] * a[i * n + j];
        outer[i * n + j] = v[i] * v[j] + (i == j ? 3.0 : 0.0);
      }
      trace += a[i * n + i];
    }
    const std::vector<double> got = symmetric_eigenvalues(a, n), one = symmetric_eigenvalues(outer, n);
    double sum = 0.0, sum_squares = 0.0;
    for (const double value : got) {
      sum += value;
      sum_squares += value * value;
    }
    const double unit = 32.0 * static_cast<double>(n) * 0x1p-52;
    CHECK(std::abs(sum - trace) <= unit * std::sqrt(squares) * static_cast<double>(n));
    CHECK(std::abs(sum_squares - squares) <= unit * squares);
    CHECK(std::abs(one[0] - length - 3.0) <= unit * (length + 3.0));
    for (size_t i = 1; i < n; ++i) CHECK(std::abs(one[i] - 3.0) <= unit * (length + 3.0));
  }
}

/// Entries whose squares vanish or keep few digits, as low rank leaves them behind, change nothing.
void test_vanishing_entries() {
  std::mt19937 random(std::random_device{}());
  std::normal_distribution<double> normal;
  for (const size_t n : {3, 12, 40}) {
    for (double size = 1e-20; size > 1e-200; size *= 1e-3) {
      std::vector<double> a(n * n);
      for (double& entry : a) entry = normal(random) * size;
      for (size_t i = 0; i < n; ++i) a[i * n + i] = static_cast<double>(i + 1);
      const std::vector<double> got = symmetric_eigenvalues(a, n);
      for (size_t i = 0; i < n; ++i) {
        CHECK(std::abs(got[i] - static_cast<double>(n - i)) <= 16.0 * static_cast<double>(n * n) * 0x1p-52);
      }
    }
  }
}

void test_ends() {
  CHECK(symmetric_eigenvalues({}, 0).empty());
  CHECK(symmetric_eigenvalues({-4.0}, 1) == std::vector<double>{-4.0});
  CHECK(symmetric_eigenvalues(std::vector<double>(9), 3) == std::vector<double>(3));
  CHECK((symmetric_eigenvalues({1, 9, 9, 0, 3, 9, 0, 0, 2}, 3) == std::vector<double>{3, 2, 1}));
  CHECK(throws<ValueError>([] { symmetric_eigenvalues({1.0, 2.0}, 2); }, "must have 4 entries, got 2"));
  CHECK(throws<ValueError>([] { symmetric_eigenvalues({1.0, 0.0, NAN, 1.0}, 2); }, "finite"));
}

}  // namespace

int main() {
  test_known_spectra();
  test_invariants();
  test_vanishing_entries();
  test_ends();
  return obverse::testing::report("symmetric_eigen");
}
