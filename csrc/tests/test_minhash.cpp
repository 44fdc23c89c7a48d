#include <algorithm>
#include <string>
#include <vector>

#include "check.hpp"
#include "obverse/minhash.hpp"
#include "obverse/random.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

std::vector<uint32_t> signature(const MinHasher& hasher, const std::string& text) {
  std::vector<uint32_t> out(hasher.num_perm());
  hasher.signature(text, out);
  return out;
}

double share_equal(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  size_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i] == b[i];
  return static_cast<double>(count) / static_cast<double>(a.size());
}

void test_signatures() {
  const MinHasher hasher(64, 16, 3, 1);
  CHECK(signature(hasher, "abcabcabc") == signature(hasher, "abcabcabcabc"));  // one set of 3-grams
  CHECK(signature(hasher, "ab") != signature(hasher, "ac"));
  CHECK(signature(hasher, "") == signature(hasher, ""));
  // Characters, not bytes: four two-byte letters have two 3-grams, one shared by the three-letter text.
  CHECK(share_equal(signature(hasher, "éàüö"), signature(hasher, "éàü")) > 0.2);
  CHECK(signature(MinHasher(64, 16, 3, 2), "abcdef") != signature(hasher, "abcdef"));
}

std::vector<std::vector<uint32_t>> random_rows(size_t count, size_t num_perm) {
  KeyedRandom random(5, 0);
  std::vector<std::vector<uint32_t>> rows(count, std::vector<uint32_t>(num_perm));
  for (size_t i = 0; i < count; ++i) {
    for (uint32_t& x : rows[i]) x = static_cast<uint32_t>(random.next());
    if (i > 0 && random.below(2) == 0) {  // near copy of an earlier row
      const auto& source = rows[random.below(i)];
      const uint64_t num_changed = random.below(num_perm / 3);
      auto copy = source;
      for (uint64_t k = 0; k < num_changed; ++k)
        copy[random.below(num_perm)] = static_cast<uint32_t>(random.next());
      rows[i] = copy;
    }
  }
  return rows;
}

/// With bands > (1 - threshold) * num_perm nothing is missed, so a plain search must agree.
void test_index() {
  const auto rows = random_rows(800, 32);
  DuplicateIndex index(32, 8, 0.8);
  std::vector<size_t> kept;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto it = std::find_if(kept.begin(), kept.end(),
                                 [&](size_t k) { return share_equal(rows[k], rows[i]) >= 0.8; });
    const int64_t expected = it == kept.end() ? -1 : static_cast<int64_t>(10 * *it);
    CHECK(index.find(rows[i]) == expected);
    CHECK(index.insert_or_find(static_cast<int64_t>(10 * i), rows[i]) == expected);
    if (expected < 0) kept.push_back(i);
  }
  CHECK(index.size() == kept.size() && kept.size() < rows.size());
}

void test_errors() {
  CHECK(throws<ValueError>([] { MinHasher(128, 33, 5, 0); }, "bands must divide num_perm = 128, got 33"));
  CHECK(throws<ValueError>([] { MinHasher(0, 1, 5, 0); }, "num_perm"));
  CHECK(throws<ValueError>([] { MinHasher(8, 4, 0, 0); }, "ngram"));
  CHECK(throws<ValueError>([] { DuplicateIndex(8, 4, 1.5); }, "threshold must be in (0, 1], got 1.5"));
  DuplicateIndex index(8, 4, 0.5);
  const std::vector<uint32_t> row(7);
  CHECK(throws<ValueError>([&] { index.find(row); }, "8 entries, got 7"));
}

}  // namespace

int main() {
  test_signatures();
  test_index();
  test_errors();
  return obverse::testing::report("minhash");
}
