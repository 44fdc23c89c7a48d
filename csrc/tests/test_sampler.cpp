#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "check.hpp"
#include "obverse/sampler.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

struct Triples {
  std::vector<int32_t> heads, predicates, tails;
};

/// Random edges with a hub at node 0 far above Sampler::kScanLimit.
Triples hub_triples(uint32_t num_nodes, uint32_t num_relations, size_t count) {
  KeyedRandom random(7, 0);
  Triples t;
  for (size_t i = 0; i < count; ++i) {
    t.heads.push_back(static_cast<int32_t>(random.below(num_nodes)));
    t.predicates.push_back(static_cast<int32_t>(random.below(num_relations)));
    t.tails.push_back(random.below(3) == 0 ? 0 : static_cast<int32_t>(random.below(num_nodes)));
  }
  return t;
}

std::shared_ptr<const Graph> make(const Triples& t, int64_t num_nodes, int64_t num_relations) {
  return std::make_shared<Graph>(num_nodes, num_relations, t.heads, t.predicates, t.tails);
}

bool is_well_formed(const SampledSets& sets, size_t i) {
  std::set<std::pair<int32_t, int32_t>> pairs;
  std::set<int32_t> nodes;
  for (auto e = static_cast<size_t>(sets.offsets[i]); e < static_cast<size_t>(sets.offsets[i + 1]); ++e) {
    const int32_t head = sets.heads[e];
    const int32_t tail = sets.tails[e];
    if (head == tail || !pairs.insert(std::minmax({head, tail})).second) return false;
    if (!nodes.empty() && !nodes.contains(head) && !nodes.contains(tail)) return false;
    nodes.insert({head, tail});
  }
  return !pairs.empty();
}

void test_sets() {
  const auto graph = make(hub_triples(300, 9, 2000), 300, 9);
  const SamplerOptions options{5, {0.0, 1.0, 1.0, 1.0, 1.0, 1.0}, 16, 1.0, 1.0};
  Sampler all(graph, options, {}, {});
  const SampledSets sets = all.draw(2000);
  for (size_t i = 0; i < 2000; ++i) CHECK(is_well_formed(sets, i));
  Sampler parts(graph, options, {}, {});
  parts.skip(700);
  const SampledSets rest = parts.draw(1300);
  CHECK(std::equal(rest.heads.begin(), rest.heads.end(),
                   sets.heads.end() - static_cast<long>(rest.heads.size())));
  CHECK(parts.position() == 2000);
}

void test_filter() {
  const auto graph = make(hub_triples(50, 4, 600), 50, 4);
  const std::vector<uint8_t> relations{1, 0, 0, 1};
  std::vector<uint8_t> entities(50, 1);
  entities[0] = 0;
  Sampler sampler(graph, {1, {1.0, 1.0}, 8, 0.5, 0.5}, relations, entities);
  const SampledSets sets = sampler.draw(500);
  CHECK(std::none_of(sets.predicates.begin(), sets.predicates.end(),
                     [](int32_t r) { return r == 1 || r == 2; }));
  CHECK(std::none_of(sets.heads.begin(), sets.heads.end(), [](int32_t n) { return n == 0; }));
  CHECK(std::none_of(sets.tails.begin(), sets.tails.end(), [](int32_t n) { return n == 0; }));
}

void test_full_hub_is_scanned() {
  // A hub of 1,000 parallel edges and one other neighbour: candidates nearly always repeat the first pair,
  // and only the full scan finds the second edge.
  Triples t;
  for (int32_t r = 0; r < 1000; ++r) {
    t.heads.push_back(0);
    t.predicates.push_back(r);
    t.tails.push_back(1);
  }
  t.heads.push_back(2);
  t.predicates.push_back(1000);
  t.tails.push_back(0);
  Sampler sampler(make(t, 3, 1001), {3, {0.0, 0.0, 1.0}, 1000, 0.0, 0.0}, {}, {});
  const SampledSets sets = sampler.draw(200);
  for (size_t i = 0; i < 200; ++i) CHECK(sets.offsets[i + 1] - sets.offsets[i] == 2);
}

void test_errors() {
  const auto graph = make({{0, 1}, {0, 0}, {1, 1}}, 2, 1);
  CHECK(graph->num_edges() == 1);
  const auto bad = [&](SamplerOptions options) { return [=] { Sampler(graph, options, {}, {}); }; };
  CHECK(throws<ValueError>(bad({0, {}, 1, 1.0, 1.0}), "size_weights"));
  CHECK(throws<ValueError>(bad({0, {1.0}, 0, 1.0, 1.0}), "reweight_every must be >= 1, got 0"));
  CHECK(throws<ValueError>(bad({0, {1.0}, 1, -1.0, 1.0}), "relation_power"));
  CHECK(throws<ValueError>([] { make({{0}, {0}, {5}}, 2, 1); }, "tails[0] must be in [0, 2), got 5"));
  const std::vector<uint8_t> none{0};
  CHECK(throws<ValueError>([&] { Sampler(graph, {0, {1.0}, 1, 1.0, 1.0}, none, {}); },
                           "at least one allowed edge"));
}

}  // namespace

int main() {
  test_sets();
  test_filter();
  test_full_hub_is_scanned();
  test_errors();
  return obverse::testing::report("sampler");
}
