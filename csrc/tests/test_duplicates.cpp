#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "check.hpp"
#include "obverse/groups.hpp"
#include "obverse/minhash.hpp"
#include "obverse/random.hpp"
#include "obverse/text_duplicates.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

uint64_t fresh_seed() {
  const uint64_t seed = std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

struct Texts {
  std::string bytes;
  std::vector<int64_t> offsets = {0};
  void add(const std::string& text) {
    bytes += text;
    offsets.push_back(static_cast<int64_t>(bytes.size()));
  }
  std::string at(size_t i) const {
    const auto first = static_cast<size_t>(offsets[i]), last = static_cast<size_t>(offsets[i + 1]);
    return bytes.substr(first, last - first);
  }
  size_t size() const { return offsets.size() - 1; }
};

/// Words of one to nine bytes, so that n-grams are short and long ones; edits of edits, and copies.
Texts random_texts(KeyedRandom* random, size_t count) {
  const std::vector<std::string> words = {"a", "of", "river", "Köln", "東京", "🜚🜚", "aaaa", "through", "\n"};
  Texts texts;
  for (size_t i = 0; i < count; ++i) {
    std::string text;
    if (i > 0 && random->below(2) == 0) {
      text = texts.at(random->below(i));
      const uint64_t changes = random->below(3);
      for (uint64_t c = 0; c < changes; ++c) text += words[random->below(words.size())];
    } else {
      const uint64_t length = random->below(30);
      for (uint64_t w = 0; w < length; ++w) text += words[random->below(words.size())];
    }
    texts.add(text);
  }
  return texts;
}

std::set<std::string> shingles(const std::string& text, size_t ngram) {
  std::vector<std::string> letters;
  for (const char byte : text) {
    if ((static_cast<unsigned char>(byte) & 0xC0U) != 0x80U) letters.emplace_back();
    letters.back() += byte;
  }
  if (letters.size() <= ngram) return {text};
  std::set<std::string> result;
  for (size_t i = 0; i + ngram <= letters.size(); ++i) {
    std::string one;
    for (size_t j = 0; j < ngram; ++j) one += letters[i + j];
    result.insert(one);
  }
  return result;
}

double jaccard(const std::set<std::string>& a, const std::set<std::string>& b) {
  size_t shared = 0;
  for (const std::string& one : a) shared += b.count(one);
  return static_cast<double>(shared) / static_cast<double>(a.size() + b.size() - shared);
}

/// The rule as it is worded, over all pairs that `near` names.
template <typename Near>
void check_groups(const DuplicateGroups& found, size_t n, const std::vector<int64_t>& order,
                  const Near& near) {
  std::vector<size_t> stay;
  bool kept = true, of = true;
  for (const int64_t place : order) {
    const auto row = static_cast<size_t>(place);
    int64_t first = -1;
    for (const size_t other : stay) {
      if (first < 0 && near(row, other)) first = static_cast<int64_t>(other);
    }
    if (first < 0) stay.push_back(row);
    kept &= (found.kept[row] != 0) == (first < 0);
    of &= found.duplicate_of[row] == first;
  }
  CHECK(kept);
  CHECK(of);
  std::vector<int64_t> group(n);
  for (size_t i = 0; i < n; ++i) group[i] = static_cast<int64_t>(i);
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        if (i != j && near(i, j) && group[j] < group[i]) {
          group[i] = group[j];
          changed = true;
        }
      }
    }
  }
  CHECK(found.group == group);
}

std::vector<int64_t> random_order(KeyedRandom* random, size_t n) {
  std::vector<int64_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = static_cast<int64_t>(i);
  for (size_t i = n; i > 1; --i) std::swap(order[i - 1], order[random->below(i)]);
  return order;
}

void test_texts() {
  KeyedRandom random(fresh_seed(), 0);
  for (const int64_t ngram : {1, 2, 4, 7, 12}) {
    const Texts texts = random_texts(&random, 90);
    std::vector<std::set<std::string>> sets;
    for (size_t i = 0; i < texts.size(); ++i)
      sets.push_back(shingles(texts.at(i), static_cast<size_t>(ngram)));
    const std::vector<int64_t> order = random_order(&random, texts.size());
    for (const double threshold : {0.5, 0.75, 1.0}) {
      // A pair at 0.5 meets in none of 128 bands with a chance of 2^-128; the sketch loses 1 in a million.
      const TextDuplicateOptions options{128, ngram, 128, 1, threshold, random.next()};
      TextDuplicates search(options, texts.bytes, texts.offsets, order);
      const int64_t n = search.num_distinct();
      search.sign(0, n / 2, 2);
      search.sign(n / 2, n, 1);
      for (int64_t band = 0; band < 128; ++band) search.gather(band);
      search.keep(0, n / 3);
      search.keep(n / 3, n);
      for (int64_t band = 127; band >= 0; --band) search.link(band);
      check_groups(search.groups(), texts.size(), order,
                   [&](size_t i, size_t j) { return jaccard(sets[i], sets[j]) >= threshold; });
    }
  }
}

void test_pairs() {
  KeyedRandom random(fresh_seed(), 1);
  for (const size_t n : {1, 2, 9, 60}) {
    std::vector<uint8_t> near(n * n, 0);
    std::vector<int64_t> i, j;
    std::vector<float> similarity;
    for (size_t p = 0; n > 1 && p < n; ++p) {
      const uint64_t a = random.below(n), b = random.below(n);
      if (a == b) continue;
      near[a * n + b] = near[b * n + a] = 1;
      i.push_back(static_cast<int64_t>(a));
      j.push_back(static_cast<int64_t>(b));
      similarity.push_back(0.5F);
    }
    const std::vector<int64_t> order = random_order(&random, n);
    const DuplicateGroups found = group_pairs(static_cast<int64_t>(n), {i, j, similarity}, order, {});
    check_groups(found, n, order, [&](size_t a, size_t b) { return near[a * n + b] != 0; });
  }
}

/// Every instruction set gives the signatures of the portable one, whatever the number of hash functions.
void test_signatures() {
  KeyedRandom random(fresh_seed(), 2);
  for (const int64_t num_perm : {1, 7, 31, 64, 127, 128, 200}) {
    const uint64_t seed = random.next();
    const Texts texts = random_texts(&random, 20);
    for (size_t t = 0; t < texts.size(); ++t) {
      std::vector<uint32_t> expected(static_cast<size_t>(num_perm)), found(expected.size());
      MinHasher(num_perm, 1, 3, seed, Isa::kPortable).signature(texts.at(t), expected);
      for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
        std::fill(found.begin(), found.end(), 0xABCDEF01U);
        MinHasher(num_perm, 1, 3, seed, isa).signature(texts.at(t), found);
        CHECK(found == expected);
      }
    }
  }
}

void test_errors() {
  const std::vector<int64_t> offsets = {0, 2}, far = {0, 5};
  const std::string text = "ab";
  CHECK(throws<ValueError>([&] { TextDuplicates({128, 5, 3, 50, 0.5, 0}, text, offsets, {}); },
                           "bands * width"));
  CHECK(throws<ValueError>([&] { TextDuplicates({128, 5, 2, 2, 1.5, 0}, text, offsets, {}); }, "threshold"));
  CHECK(
      throws<ValueError>([&] { TextDuplicates({128, 5, 2, 2, 0.5, 0}, text, far, {}); }, "offsets must end"));
  TextDuplicates search({128, 5, 2, 2, 0.5, 0}, text, offsets, {});
  CHECK(throws<ValueError>([&] { search.keep(0, 1); }, "gather every band first"));
  CHECK(throws<ValueError>([&] { search.sign(0, 2, 1); }, "texts must be in [0, 1)"));
  search.gather(0);
  CHECK(throws<ValueError>([&] { search.gather(0); }, "in order, once each; got 0"));
  const std::vector<int64_t> order = {0, 0};
  CHECK(throws<ValueError>([&] { check_order(2, order); }, "order[1] = 0"));
}

}  // namespace

int main() {
  test_texts();
  test_pairs();
  test_signatures();
  test_errors();
  return obverse::testing::report("duplicates");
}
