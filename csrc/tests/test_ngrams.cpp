#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "check.hpp"
#include "obverse/ngrams.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

using Words = std::vector<std::string>;

// Appended to: GCC 12 sees an overlap in what "w" + std::to_string(number) becomes.
std::string word(uint64_t number) {
  std::string text(1, 'w');
  text += std::to_string(number);
  return text;
}

WordTexts texts_of(const std::vector<std::string>& texts, size_t batch) {
  WordTexts result;
  std::vector<std::string_view> views;
  for (const std::string& text : texts) {
    views.emplace_back(text);
    if (views.size() == batch) {
      result.add(views);
      views.clear();
    }
  }
  result.add(views);
  return result;
}

std::string joined(const Words& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

/// By maps of whole n-grams, and every other text looked at for every text.
NgramCounts plainly(const std::vector<Words>& texts, size_t order) {
  NgramCounts result;
  std::vector<std::map<Words, uint32_t>> counts(texts.size());
  std::set<Words> all;
  for (size_t t = 0; t < texts.size(); ++t) {
    for (size_t i = 0; i + order <= texts[t].size(); ++i) {
      const Words gram(texts[t].begin() + static_cast<std::ptrdiff_t>(i),
                       texts[t].begin() + static_cast<std::ptrdiff_t>(i + order));
      ++counts[t][gram];
      all.insert(gram);
      ++result.total;
    }
  }
  result.distinct = static_cast<int64_t>(all.size());
  for (size_t t = 0; t < texts.size(); ++t) {
    uint32_t matched = 0;
    for (const auto& [gram, count] : counts[t]) {
      uint32_t most = 0;
      for (size_t u = 0; u < texts.size(); ++u) {
        const auto found = counts[u].find(gram);
        if (u != t && found != counts[u].end()) most = std::max(most, found->second);
      }
      matched += std::min(count, most);
    }
    result.matches.push_back(matched);
  }
  return result;
}

void test_words() {
  const WordTexts got = texts_of({"The cat's_1 THE", "", " !?", "caf\xC3\xA9 CAF\xC3\xA9 the"}, 2);
  CHECK(std::vector<uint32_t>(got.words().begin(), got.words().end()) ==
        (std::vector<uint32_t>{0, 1, 2, 0, 3, 3, 0}));
  CHECK(std::vector<int64_t>(got.offsets().begin(), got.offsets().end()) ==
        (std::vector<int64_t>{0, 4, 4, 4, 7}));
  CHECK(got.num_words() == 4 && got.size() == 4 && got.nbytes() > 0);
}

/// More words than the first table has room for, each known again.
void test_many_words() {
  std::vector<std::string> texts;
  for (int i = 0; i < 5000; ++i) texts.push_back(word(i) + " v" + std::to_string(i % 7));
  const WordTexts once = texts_of(texts, 100);
  CHECK(once.num_words() == 5007);
  auto twice = texts;
  twice.insert(twice.end(), texts.begin(), texts.end());
  CHECK(texts_of(twice, 64).num_words() == 5007);
}

void check_equal(const std::vector<Words>& texts, int threads, int64_t partition_rows, unsigned seed) {
  std::vector<std::string> lines;
  for (const Words& words : texts) lines.push_back(joined(words));
  const auto got = count_ngrams(texts_of(lines, 33), 5, true, threads, partition_rows);
  const auto bare = count_ngrams(texts_of(lines, 7), 5, false, threads, partition_rows);
  for (size_t order = 1; order <= 5; ++order) {
    const NgramCounts expected = plainly(texts, order);
    const bool same = got[order - 1].total == expected.total &&
                      got[order - 1].distinct == expected.distinct &&
                      got[order - 1].matches == expected.matches && bare[order - 1].total == expected.total &&
                      bare[order - 1].distinct == expected.distinct && bare[order - 1].matches.empty();
    if (!same) std::fprintf(stderr, "seed %u, order %zu, %d threads\n", seed, order, threads);
    CHECK(same);
  }
}

void test_counts() {
  const unsigned first = std::random_device{}();
  for (unsigned seed = first; seed < first + 60; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](unsigned n) { return static_cast<unsigned>(random() % n); };
    const unsigned alphabet = 1 + below(seed % 2 == 0 ? 4 : 60), longest = 1 + below(25);
    std::vector<Words> texts(below(90));
    for (size_t t = 0; t < texts.size(); ++t) {
      if (t > 0 && below(4) == 0) {
        texts[t] = texts[below(static_cast<unsigned>(t))];  // ties of the greatest count
        continue;
      }
      const unsigned length = below(longest + 1);
      for (unsigned i = 0; i < length; ++i) texts[t].push_back(word(below(alphabet)));
    }
    check_equal(texts, 1 + static_cast<int>(below(4)), seed % 3 == 0 ? 1 : int64_t{1} << 20, seed);
  }
}

/// Enough texts for several shares, and tokens for several partitions: the same from every way of sharing them.
void test_sharing() {
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  std::vector<std::string> texts(6000);
  for (std::string& text : texts) {
    const size_t length = random() % 30;
    for (size_t i = 0; i < length; ++i) text += word(random() % (1 + random() % 900)) + " ";
  }
  const WordTexts words = texts_of(texts, 1000);
  const auto one = count_ngrams(words, 4, true, 1);
  for (const int threads : {2, 5}) {
    for (const int64_t rows : {int64_t{1}, int64_t{20'000}, int64_t{1} << 24}) {
      const auto other = count_ngrams(words, 4, true, threads, rows);
      for (size_t i = 0; i < 4; ++i) {
        CHECK(other[i].total == one[i].total && other[i].distinct == one[i].distinct);
        CHECK(other[i].matches == one[i].matches);
      }
    }
  }
  std::set<std::vector<uint32_t>> grams;
  const auto all = words.words();
  const auto ends = words.offsets();
  for (size_t t = 0; t < words.size(); ++t) {
    for (auto i = static_cast<size_t>(ends[t]); i + 3 <= static_cast<size_t>(ends[t + 1]); ++i) {
      grams.insert({all[i], all[i + 1], all[i + 2]});
    }
  }
  CHECK(one[2].distinct == static_cast<int64_t>(grams.size()));
}

void test_errors() {
  const WordTexts texts = texts_of({"a b", "b c"}, 2);
  CHECK(throws<ValueError>([&] { count_ngrams(texts, 0, true, 1); }, "orders must be in [1, 16], got 0"));
  CHECK(throws<ValueError>([&] { count_ngrams(texts, 17, true, 1); }, "got 17"));
  CHECK(throws<ValueError>([&] { count_ngrams(texts, 2, true, 0); }, "threads must be at least 1, got 0"));
  const auto none = count_ngrams(WordTexts(), 3, true, 2);
  CHECK(none.size() == 3 && none[0].total == 0 && none[0].distinct == 0 && none[0].matches.empty());
}

}  // namespace

int main() {
  test_words();
  test_many_words();
  test_counts();
  test_sharing();
  test_errors();
  return obverse::testing::report("ngrams");
}
