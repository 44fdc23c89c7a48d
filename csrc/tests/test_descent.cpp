// The approximate graph: block joins against plain loops on every instruction set, lists against all that was
// offered, whole graphs against brute force, and the same bytes whatever the threads and the instruction set.
#include "obverse/descent.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <set>
#include <vector>

#include "../src/descent_kernels.hpp"
#include "../src/memory.hpp"
#include "check.hpp"
#include "obverse/random.hpp"

namespace {

using namespace obverse;

constexpr VectorIsa kAll[] = {VectorIsa::kPortable, VectorIsa::kAvx2, VectorIsa::kAvx512Vnni};

/// int8 rows; with `spread` < 128 in clusters around a few centres.
std::vector<int8_t> random_rows(KeyedRandom* random, int64_t n, int32_t width, int spread, int64_t clusters) {
  const auto value = [&](int range) {
    return static_cast<int>(random->below(2 * static_cast<uint64_t>(range) + 1)) - range;
  };
  std::vector<int> centres(static_cast<size_t>(clusters * width));
  for (int& c : centres) c = spread < 128 ? value(100) : 0;
  std::vector<int8_t> q(static_cast<size_t>(n * width));
  for (int64_t i = 0; i < n; ++i) {
    const auto centre = static_cast<int64_t>(random->below(static_cast<uint64_t>(clusters)));
    for (int32_t t = 0; t < width; ++t)
      q[static_cast<size_t>(i * width + t)] = static_cast<int8_t>(std::clamp(
          centres[static_cast<size_t>(centre * width + t)] + value(std::min(spread, 128)), -128, 127));
  }
  return q;
}

int32_t dot(const std::vector<int8_t>& q, int32_t width, int64_t i, int64_t j) {
  int32_t sum = 0;
  for (int32_t t = 0; t < width; ++t)
    sum += q[static_cast<size_t>(i * width + t)] * q[static_cast<size_t>(j * width + t)];
  return sum;
}

/// Lists with their memory, as Descent makes them.
struct Lists {
  std::vector<int32_t> sums, thresholds;
  Memory keys;
  std::vector<uint8_t> locks;
  DescentRows rows;
  Lists(const std::vector<int8_t>& q, int64_t n, int32_t width, int32_t degree)
      : sums(static_cast<size_t>(n)),
        thresholds(static_cast<size_t>(n), INT32_MIN),
        keys(n * degree * 8),
        locks(static_cast<size_t>(n)) {
    for (int64_t i = 0; i < n; ++i) {
      for (int32_t t = 0; t < width; ++t)
        sums[static_cast<size_t>(i)] += q[static_cast<size_t>(i * width + t)];
      for (int e = 0; e < degree; ++e) keys.as<int64_t>()[i * degree + e] = descent_no_key(e);
    }
    rows = {q.data(), sums.data(), keys.as<int64_t>(), thresholds.data(), locks.data(), width, width, degree};
  }
  std::vector<std::pair<int32_t, int32_t>> sorted(int64_t row) const {  // (-dot, id)
    std::vector<std::pair<int32_t, int32_t>> out;
    for (int e = 0; e < rows.degree; ++e) {
      const int64_t key = keys.as<int64_t>()[row * rows.degree + e];
      if (descent_dot(key) != INT32_MIN) out.emplace_back(-descent_dot(key), descent_id(key));
    }
    std::sort(out.begin(), out.end());
    return out;
  }
};

/// Random blocks joined one after another: every list must be the best of all that its row was offered.
void test_joins(uint64_t seed, VectorIsa isa) {
  KeyedRandom random(seed, 1);
  const auto n = static_cast<int64_t>(2 + random.below(300));
  const auto width = static_cast<int32_t>(64 * (1 + random.below(7)));
  const auto degree = static_cast<int32_t>(8 * (1 + random.below(5)));
  // Few values give equal dot products, which ids must order.
  const std::vector<int8_t> q = random_rows(&random, n, width, random.below(2) == 0 ? 128 : 1, 3);
  Lists lists(q, n, width, degree);
  const DescentKernels& kernels = descent_kernels(isa);
  std::vector<std::set<std::pair<int32_t, int32_t>>> offered(static_cast<size_t>(n));
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  int64_t evaluated = 0, pairs = 0;
  for (int call = 0; call < 8; ++call) {
    for (size_t i = ids.size() - 1; i > 0; --i) std::swap(ids[i], ids[random.below(i + 1)]);
    const auto count = static_cast<int32_t>(random.below(static_cast<uint64_t>(n) + 1));
    const auto fresh = static_cast<int32_t>(random.below(static_cast<uint64_t>(count) + 1));
    const int64_t bytes = kernels.scratch_bytes(width, count);
    const Memory scratch(bytes + 64);
    std::memset(scratch.as<char>(), 0xA5, static_cast<size_t>(bytes) + 64);
    kernels.join(lists.rows, {ids.data(), count, fresh}, scratch.as<void>(), &evaluated);
    for (int64_t at = bytes; at < bytes + 64; ++at) CHECK(scratch.as<uint8_t>()[at] == 0xA5);
    for (int32_t i = 0; i < fresh; ++i)
      for (int32_t j = i + 1; j < count; ++j, ++pairs) {
        const int32_t a = ids[static_cast<size_t>(i)], b = ids[static_cast<size_t>(j)],
                      d = dot(q, width, a, b);
        offered[static_cast<size_t>(a)].emplace(-d, b);
        offered[static_cast<size_t>(b)].emplace(-d, a);
      }
  }
  CHECK(evaluated == pairs);
  for (int64_t i = 0; i < n; ++i) {
    std::vector<std::pair<int32_t, int32_t>> best(offered[static_cast<size_t>(i)].begin(),
                                                  offered[static_cast<size_t>(i)].end());
    if (best.size() > static_cast<size_t>(degree)) best.resize(static_cast<size_t>(degree));
    const auto got = lists.sorted(i);
    CHECK(got == best);
    const bool full = best.size() == static_cast<size_t>(degree);
    CHECK(lists.thresholds[static_cast<size_t>(i)] == (full ? -best.back().first : INT32_MIN));
    CHECK(lists.locks[static_cast<size_t>(i)] == 0);
  }
}

void test_nearest(uint64_t seed, VectorIsa isa) {
  KeyedRandom random(seed, 2);
  const auto n = static_cast<int64_t>(1 + random.below(200));
  const auto width = static_cast<int32_t>(64 * (1 + random.below(4)));
  const std::vector<int8_t> q = random_rows(&random, n, width, random.below(2) == 0 ? 128 : 1, 2);
  Lists lists(q, n, width, 8);
  DescentRows front = lists.rows;
  front.width = static_cast<int32_t>(64 * (1 + random.below(static_cast<uint64_t>(width / 64))));
  const auto leaders = static_cast<int32_t>(1 + random.below(static_cast<uint64_t>(n)));
  const auto fanout = static_cast<int32_t>(1 + random.below(static_cast<uint64_t>(std::min(4, leaders))));
  std::vector<int32_t> ids(static_cast<size_t>(n)), leader_ids(static_cast<size_t>(leaders));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.below(static_cast<uint64_t>(n)));
  for (int32_t& id : leader_ids) id = static_cast<int32_t>(random.below(static_cast<uint64_t>(n)));
  const DescentKernels& kernels = descent_kernels(isa);
  const Memory packed(kernels.scratch_bytes(front.width, leaders));
  kernels.pack(front, leader_ids.data(), leaders, packed.as<void>());
  std::vector<int32_t> got(static_cast<size_t>(n * fanout), -1);
  kernels.nearest(front, ids.data(), static_cast<int32_t>(n), packed.as<void>(), leaders, fanout, got.data());
  for (int64_t i = 0; i < n; ++i) {
    std::vector<std::pair<int32_t, int32_t>> all;
    for (int32_t l = 0; l < leaders; ++l) {
      int32_t sum = 0;
      for (int32_t t = 0; t < front.width; ++t)
        sum += q[static_cast<size_t>(ids[static_cast<size_t>(i)] * width + t)] *
               q[static_cast<size_t>(leader_ids[static_cast<size_t>(l)] * width + t)];
      all.emplace_back(-sum, l);
    }
    std::sort(all.begin(), all.end());
    for (int32_t f = 0; f < fanout; ++f)
      CHECK(got[static_cast<size_t>(i * fanout + f)] == all[static_cast<size_t>(f)].second);
  }
}

std::vector<int32_t> grown(const std::vector<int8_t>& q, int64_t n, int32_t width,
                           const DescentSettings& settings, int32_t m) {
  Descent graph(q, n, width, settings);
  while (graph.step().part != "done") {
  }
  std::vector<int32_t> out(static_cast<size_t>(n * m), -7);
  graph.candidates(m, out);
  return out;
}

/// The best m of all other rows by (dot, -id); rows of equal bytes stand together, where the first of them stands.
std::vector<int32_t> brute(const std::vector<int8_t>& q, int64_t n, int32_t width, int32_t m) {
  std::vector<int32_t> out(static_cast<size_t>(n * m), -1);
  for (int64_t i = 0; i < n; ++i) {
    std::vector<std::pair<int32_t, int32_t>> all;
    for (int64_t j = 0; j < n; ++j)
      if (j != i) all.emplace_back(-dot(q, width, i, j), static_cast<int32_t>(j));
    std::sort(all.begin(), all.end());
    for (size_t e = 0; e < std::min(all.size(), static_cast<size_t>(m)); ++e)
      out[static_cast<size_t>(i * m) + e] = all[e].second;
  }
  return out;
}

/// Up to a leaf of rows every pair is compared: the graph is exact.
void test_small(uint64_t seed) {
  KeyedRandom random(seed, 3);
  const int64_t sizes[] = {0, 1, 2, 3, 16, 17, static_cast<int64_t>(random.below(400))};
  for (const int64_t n : sizes) {
    const std::vector<int8_t> q = random_rows(&random, n, 128, 128, 1);  // equal rows are next to impossible
    DescentSettings settings;
    settings.seed = seed;
    settings.isa = kAll[random.below(3)];
    const auto m = static_cast<int32_t>(1 + random.below(16));
    CHECK(grown(q, n, 128, settings, m) == brute(q, n, 128, m));
  }
}

/// Recall of the best 8 by dot product over clusters, and the same bytes from all threads and instruction sets.
void test_graph(uint64_t seed) {
  KeyedRandom random(seed, 4);
  const int64_t n = 3000 + static_cast<int64_t>(random.below(1000));
  const std::vector<int8_t> q = random_rows(&random, n, 64, 60, 40);
  DescentSettings settings;
  settings.leaf = 128;
  settings.seed = seed;
  const std::vector<int32_t> got = grown(q, n, 64, settings, 8), truth = brute(q, n, 64, 8);
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    std::set<int32_t> mine(got.begin() + i * 8, got.begin() + i * 8 + 8);
    CHECK(mine.size() == 8 && mine.count(static_cast<int32_t>(i)) == 0);
    for (int e = 0; e < 8; ++e)
      found += static_cast<int64_t>(mine.count(truth[static_cast<size_t>(i * 8 + e)]));
  }
  const double recall = static_cast<double>(found) / static_cast<double>(n * 8);
  std::printf("recall %.4f of %lld rows\n", recall, static_cast<long long>(n));
  CHECK(recall > 0.97);
  for (const VectorIsa isa : kAll)
    for (const int threads : {1, 2, 5}) {
      settings.isa = isa;
      settings.threads = threads;
      CHECK(grown(q, n, 64, settings, 8) == got);
    }
  settings.seed = seed + 1;
  settings.rounds = 0;
  settings.carvings = 1;
  CHECK(grown(q, n, 64, settings, 8) != got);
}

/// Thousands of equal rows: each has the lowest others of its kind first, and the work stays that of distinct rows.
void test_equal_rows(uint64_t seed) {
  KeyedRandom random(seed, 5);
  const int64_t n = 6000;
  std::vector<int8_t> q = random_rows(&random, n, 64, 60, 20);
  std::vector<int64_t> equal;
  for (int64_t i = 0; i < n; ++i)
    if (random.below(3) == 0) equal.push_back(i);
  for (const int64_t i : equal) std::copy_n(q.begin() + equal[0] * 64, 64, q.begin() + i * 64);
  DescentSettings settings;
  settings.leaf = 256;
  Descent graph(q, n, 64, settings);
  CHECK(graph.distinct() <= n - static_cast<int64_t>(equal.size()) + 1);
  while (graph.step().part != "done") {
  }
  std::vector<int32_t> out(static_cast<size_t>(n * 12));
  graph.candidates(12, out);
  for (const int64_t i : equal)
    for (size_t e = 0, other = 0; e < 12; ++e, ++other) {
      other += equal[other] == i;
      CHECK(out[static_cast<size_t>(i) * 12 + e] == equal[other]);
    }
  for (int64_t i = 0; i < n; ++i) {
    std::set<int32_t> mine(out.begin() + i * 12, out.begin() + i * 12 + 12);
    CHECK(mine.size() == 12 && mine.count(static_cast<int32_t>(i)) == 0 && mine.count(-1) == 0);
  }
}

void test_refusals() {
  const std::vector<int8_t> q(128);
  DescentSettings settings;
  CHECK(testing::throws<ValueError>([&] { Descent(q, 2, 63, settings); }, "multiple of 64"));
  CHECK(testing::throws<ValueError>([&] { Descent(q, 3, 64, settings); }, "n * width = 192"));
  settings.degree = 12;
  CHECK(testing::throws<ValueError>([&] { Descent(q, 2, 64, settings); }, "degree"));
  settings.degree = 8;
  Descent graph(q, 2, 64, settings);
  std::vector<int32_t> out(3);
  CHECK(testing::throws<ValueError>([&] { graph.candidates(2, out); }, "n * m = 4"));
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t seed =
      argc > 1 ? std::strtoull(argv[1], nullptr, 10) : static_cast<uint64_t>(std::time(nullptr));
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  for (uint64_t s = 0; s < 12; ++s)
    for (const VectorIsa isa : kAll) {
      test_joins(seed * 100 + s, isa);
      test_nearest(seed * 100 + s, isa);
    }
  test_small(seed);
  test_graph(seed);
  test_equal_rows(seed);
  test_refusals();
  return testing::report("test_descent");
}
