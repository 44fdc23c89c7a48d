// The joins against a plain double loop, on every instruction set and on one thread and several.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "obverse/error.hpp"
#include "obverse/exact_join.hpp"
#include "obverse/random.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

/// Rows with what the core needs of them: turned by nothing, so that the bound rests on the measured error alone.
struct Rows {
  int64_t n, d, width;
  std::vector<float> x;
  std::vector<double> norms;
  std::vector<int8_t> q;
  std::vector<float> error;

  Rows(int64_t count, int64_t columns, uint64_t seed)
      : n(count), d(columns), width((columns + 63) / 64 * 64) {
    KeyedRandom random(seed, 0);
    x.resize(static_cast<size_t>(n * d));
    for (int64_t i = 0; i < n; ++i) {
      const bool near = i > 0 && random.below(3) == 0;  // a near copy of an earlier row
      const auto source = static_cast<int64_t>(near ? random.below(static_cast<uint64_t>(i)) : 0);
      for (int64_t c = 0; c < d; ++c) {
        const auto noise = static_cast<float>(random.uniform() - 0.5);
        x[static_cast<size_t>(i * d + c)] =
            near ? x[static_cast<size_t>(source * d + c)] + 0.001F * noise : noise;
      }
    }
    norms.resize(static_cast<size_t>(n));
    q.resize(static_cast<size_t>(n * width));
    error.resize(static_cast<size_t>(n));
    std::vector<float> identity(static_cast<size_t>(d * width));
    for (int64_t c = 0; c < d; ++c) identity[static_cast<size_t>(c * width + c)] = 1.0F;
    CHECK(vector_norms(vectors(), norms.data(), {}) == -1);
    quantise_rows(vectors(), norms.data(), {identity.data(), d, width, scale(), 0.0}, q.data(), error.data(),
                  {});
  }
  static double scale() { return 0.6 / 127; }
  Vectors vectors() const { return {x.data(), VectorDtype::kFloat32, n, d}; }
  JoinSide side() const { return {vectors(), norms.data(), q.data(), error.data()}; }
  float cosine(int64_t i, const Rows& other, int64_t j) const {
    // The definition's lanes, in plain loops.
    double lane[16] = {};
    for (int64_t c = 0; c < d; ++c) {
      lane[c % 16] += static_cast<double>(x[static_cast<size_t>(i * d + c)]) *
                      static_cast<double>(other.x[static_cast<size_t>(j * d + c)]);
    }
    for (int w = 8; w > 0; w /= 2) {
      for (int l = 0; l < w; ++l) lane[l] += lane[l + w];
    }
    return static_cast<float>(lane[0] /
                              (norms[static_cast<size_t>(i)] * other.norms[static_cast<size_t>(j)]));
  }
};

std::vector<int32_t> all_of(int64_t n) {
  std::vector<int32_t> rows(static_cast<size_t>(n));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

JoinProblem problem_of(const Rows& x, const Rows& y, bool self, VectorRun run) {
  JoinProblem problem;
  problem.x = x.side();
  problem.y = self ? problem.x : y.side();
  problem.self = self;
  problem.width = x.width;
  problem.scale = Rows::scale();
  problem.run = run;
  return problem;
}

void check_lists(const Rows& x, const Rows& y, bool self, int64_t k, TopKJoin& join) {
  for (int64_t i = 0; i < x.n; ++i) {
    std::vector<std::pair<float, int32_t>> all;
    for (int64_t j = 0; j < y.n; ++j) {
      if (!self || i != j) all.emplace_back(-x.cosine(i, y, j), static_cast<int32_t>(j));
    }
    std::sort(all.begin(), all.end());
    bool same = true;
    for (int64_t c = 0; c < k; ++c) {
      const auto at = static_cast<size_t>(i * k + c);
      const bool there = c < static_cast<int64_t>(all.size());
      same = same && join.indices()[at] == (there ? all[static_cast<size_t>(c)].second : -1);
      same = same && join.similarities()[at] == (there ? -all[static_cast<size_t>(c)].first
                                                       : -std::numeric_limits<float>::infinity());
    }
    CHECK(same);
  }
}

void test_top_k() {
  for (const VectorIsa isa : {VectorIsa::kPortable, VectorIsa::kAvx2, VectorIsa::kAvx512Vnni}) {
    for (const int threads : {1, 3}) {
      for (const bool self : {true, false}) {
        for (const int64_t n : {2, 65, 1100}) {
          const Rows x(n, n == 65 ? 70 : 20, 7 + static_cast<uint64_t>(n)), y(n + 3, x.d, 99);
          const std::vector<int32_t> rows = all_of(x.n), columns = all_of(y.n);
          TopKJoin join(problem_of(x, y, self, {threads, isa}), rows, columns, 5);
          join.seed_by_trees(2, 1, 3);
          join.start();
          for (int64_t i = 0; i < join.steps(); ++i) join.step(i);
          check_lists(x, self ? x : y, self, 5, join);
          CHECK(join.counts().pairs == (self ? n * (n - 1) / 2 : n * (n + 3)));
        }
      }
    }
  }
}

void test_thresholds_and_balls() {
  const Rows x(700, 33, 5), y(990, 33, 6);
  const std::vector<int32_t> rows = all_of(x.n), columns = all_of(y.n);
  const std::vector<int64_t> weight_x(700, 2), weight_y(990, 1);
  std::vector<float> radius_x, radius_y;
  for (int64_t i = 0; i < x.n; ++i) radius_x.push_back(x.cosine(i, y, i));
  for (int64_t j = 0; j < y.n; ++j) radius_y.push_back(x.cosine(j % x.n, y, j));
  for (const VectorIsa isa : {VectorIsa::kPortable, VectorIsa::kAvx2, VectorIsa::kAvx512Vnni}) {
    const JoinProblem problem = problem_of(x, y, false, {2, isa});
    ThresholdJoin above(problem, rows, columns, radius_x[3], 1 << 20);
    BallJoin balls(problem, rows, columns,
                   {radius_x.data(), radius_y.data(), weight_x.data(), weight_y.data()});
    for (int64_t i = 0; i < above.steps(); ++i) above.step(i);
    for (int64_t i = 0; i < balls.steps(); ++i) balls.step(i);
    int64_t pairs = 0;
    std::vector<int64_t> inside_y(990), inside_x(700), reached_x(700);
    for (int64_t i = 0; i < x.n; ++i) {
      for (int64_t j = 0; j < y.n; ++j) {
        const auto a = static_cast<size_t>(i), b = static_cast<size_t>(j);
        const float similarity = x.cosine(i, y, j);
        pairs += similarity >= radius_x[3];
        inside_y[b] += similarity >= radius_x[a] ? 2 : 0;
        inside_x[a] += similarity >= radius_x[a];
        reached_x[a] += similarity >= radius_y[b];
      }
    }
    CHECK(above.total() == pairs);
    CHECK(static_cast<int64_t>(above.rows().size()) == pairs);
    CHECK(balls.inside_y() == inside_y);
    CHECK(balls.inside_x() == inside_x);
    CHECK(balls.reached_x() == reached_x);
  }
}

void test_equal_rows() {
  // Rows 0, 2 and 3 are equal, 1 and 4 too; lists between the first of each.
  const std::vector<int64_t> first{0, 1, 0, 0, 1, 5};
  std::vector<int32_t> lists(6 * 2, -1);
  std::vector<float> values(6 * 2, 0.0F);
  const auto put = [&](size_t row, int32_t a, float u, int32_t b, float v) {
    lists[2 * row] = a, values[2 * row] = u, lists[2 * row + 1] = b, values[2 * row + 1] = v;
  };
  put(0, 1, 0.5F, 5, 0.5F);
  put(1, 0, 0.5F, 5, 0.1F);
  put(5, 0, 0.5F, 1, 0.1F);
  std::vector<int64_t> indices(6 * 4);
  std::vector<float> similarities(6 * 4);
  expand_equal_rows({first}, {first}, true, lists, values, 2, 4, indices.data(), similarities.data(), 1);
  const auto row = [&](int i) {
    return std::vector<int64_t>(indices.begin() + 4 * i, indices.begin() + 4 * i + 4);
  };
  CHECK((row(0) == std::vector<int64_t>{2, 3, 1, 4}));
  CHECK((row(3) == std::vector<int64_t>{0, 2, 1, 4}));
  CHECK((row(4) == std::vector<int64_t>{1, 0, 2, 3}));
  CHECK((row(5) == std::vector<int64_t>{0, 2, 3, 1}));
  CHECK(similarities[0] == 1.0F && similarities[2] == 0.5F && similarities[23] == 0.1F);
}

void test_errors() {
  const Rows x(4, 8, 1);
  JoinProblem problem = problem_of(x, x, true, {});
  const std::vector<int32_t> rows = all_of(4);
  CHECK(throws<ValueError>([&] { TopKJoin(problem, rows, {}, 0); }, "k must be >= 1, got 0"));
  TopKJoin join(problem, rows, {}, 2);
  CHECK(throws<ValueError>([&] { join.step(0); }, "step must be in [0, 0), got 0"));
  CHECK(throws<ValueError>([&] { join.seed(rows, 2); }, "candidates must have 2 entries a row"));
  CHECK(throws<ValueError>([&] { join.restore({}, {}, {}); }, "order must have 4 rows, got 0"));
  problem.scale = 1e-5;
  CHECK(throws<ValueError>([&] { TopKJoin(problem, rows, {}, 2); }, "scale must be at least 2^-12"));
  std::vector<float> bad{1.0F, std::numeric_limits<float>::quiet_NaN(), 0.0F, 0.0F};
  std::vector<double> norms(2);
  CHECK(vector_norms({bad.data(), VectorDtype::kFloat32, 2, 2}, norms.data(), {}) == 0);
  bad[1] = 2.0F;
  CHECK(vector_norms({bad.data(), VectorDtype::kFloat32, 2, 2}, norms.data(), {}) == 1);
}

}  // namespace

int main() {
  test_top_k();
  test_thresholds_and_balls();
  test_equal_rows();
  test_errors();
  return obverse::testing::report("exact_join");
}
