#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "obverse/graph_select.hpp"
#include "obverse/k_center.hpp"
#include "obverse/random.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

struct Lists {
  std::vector<int32_t> indices;
  std::vector<float> similarities;
};

Lists random_lists(KeyedRandom* random, size_t n, size_t k) {
  Lists lists;
  for (size_t e = 0; e < n * k; ++e) {
    lists.indices.push_back(static_cast<int32_t>(random->below(n + 1)) - 1);
    lists.similarities.push_back(static_cast<float>(random->below(17)) / 16.0F - 0.125F);
  }
  return lists;
}

void test_graph(KeyedRandom* random) {
  const size_t n = 50, k = 4;
  const Lists lists = random_lists(random, n, k);
  const NeighbourGraph graph(span<const int32_t>(lists.indices), lists.similarities, n, k);
  size_t edges = 0;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      float best = -2.0F;
      for (size_t e = 0; e < k; ++e) {
        if (i != j && lists.indices[i * k + e] == static_cast<int32_t>(j))
          best = std::max(best, lists.similarities[i * k + e]);
        if (i != j && lists.indices[j * k + e] == static_cast<int32_t>(i))
          best = std::max(best, lists.similarities[j * k + e]);
      }
      float held = -2.0F;
      for (const NeighbourGraph::Edge& edge : graph.edges(i)) {
        if (edge.row == j) held = edge.similarity;
      }
      CHECK(held == best);
      edges += best > -2.0F ? 1 : 0;
    }
  }
  CHECK(graph.num_edges() == edges / 2 && graph.size() == n);
}

void test_greedy(KeyedRandom* random) {
  const size_t n = 60, k = 5;
  const Lists lists = random_lists(random, n, k);
  const NeighbourGraph graph(span<const int32_t>(lists.indices), lists.similarities, n, k);
  std::vector<double> weights(n), qualities(n), covered(n, 0.0);
  for (size_t i = 0; i < n; ++i) {
    weights[i] = static_cast<double>(random->below(5)) / 4.0;
    qualities[i] = random->uniform();
  }
  FacilityLocation location(graph, weights, qualities);
  std::vector<int64_t> rows;
  std::vector<double> gains;
  location.choose(7, &rows, &gains);
  location.choose(1000, &rows, &gains);
  CHECK(rows.size() == n && gains.size() == n);
  std::vector<uint8_t> taken(n, 0);
  double total = 0.0;
  for (size_t step = 0; step < n; ++step) {
    double best = -1.0;
    size_t best_row = n;
    for (size_t row = 0; row < n; ++row) {
      if (taken[row] != 0) continue;
      double gain = weights[row] * std::max(0.0, qualities[row] - covered[row]);
      for (const NeighbourGraph::Edge& edge : graph.edges(row)) {
        const double value = qualities[row] * static_cast<double>(edge.similarity);
        gain += weights[edge.row] * std::max(0.0, value - covered[edge.row]);
      }
      if (gain > best) {
        best = gain;
        best_row = row;
      }
    }
    CHECK(rows[step] == static_cast<int64_t>(best_row));
    CHECK(gains[step] == best);
    taken[best_row] = 1;
    covered[best_row] = std::max(covered[best_row], qualities[best_row]);
    for (const NeighbourGraph::Edge& edge : graph.edges(best_row)) {
      covered[edge.row] =
          std::max(covered[edge.row], qualities[best_row] * static_cast<double>(edge.similarity));
    }
    total += best;
  }
  CHECK(std::abs(total - location.total()) <= 1e-12 * static_cast<double>(n));
}

void test_errors() {
  const std::vector<int32_t> bad = {1, 2};
  const std::vector<float> values = {0.5F, 0.5F};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> broken = {0.5F, nan};
  const std::vector<int64_t> good = {1, 0};
  CHECK(throws<ValueError>([&] { NeighbourGraph(span<const int32_t>(bad), values, 2, 1); },
                           "indices[1, 0] must be -1"));
  CHECK(throws<ValueError>([&] { NeighbourGraph(span<const int64_t>(good), broken, 2, 1); },
                           "similarities[1, 0]"));
  const NeighbourGraph graph(span<const int64_t>(good), values, 2, 1);
  const std::vector<double> factors = {1.0, -1.0};
  CHECK(throws<ValueError>([&] { FacilityLocation(graph, factors, {}); },
                           "weight[1] must be finite and >= 0, got -1"));
  CHECK(throws<ValueError>([&] { GraphCenters(graph, 2); }, "first must be a row below 2, got 2"));
  const std::vector<float> x = {1.0F, 0.0F, 0.0F, 0.0F};
  const Vectors rows{x.data(), VectorDtype::kFloat32, 2, 2};
  CHECK(throws<ValueError>([&] { VectorCenters(rows, 0, {}); }, "got row 1"));
  const NeighbourGraph empty(span<const int64_t>(), {}, 0, 3);
  std::vector<int64_t> chosen;
  std::vector<double> distances;
  GraphCenters(empty, 0).choose(3, &chosen, &distances);
  FacilityLocation(empty, {}, {}).choose(3, &chosen, &distances);
  CHECK(chosen.empty());
}

}  // namespace

int main() {
  const uint64_t seed = std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  KeyedRandom random(seed, 0);
  for (int turn = 0; turn < 5; ++turn) {
    test_graph(&random);
    test_greedy(&random);
  }
  test_errors();
  return obverse::testing::report("select");
}
