#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "check.hpp"
#include "obverse/random.hpp"
#include "obverse/trie.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

using Sequence = std::vector<int32_t>;

std::shared_ptr<const Trie> build(const std::vector<Sequence>& sequences) {
  Sequence flat;
  std::vector<int64_t> offsets{0};
  for (const Sequence& s : sequences) {
    flat.insert(flat.end(), s.begin(), s.end());
    offsets.push_back(static_cast<int64_t>(flat.size()));
  }
  return Trie::build(Ragged<int32_t>(flat, offsets));
}

int64_t walk(const Trie& trie, const Sequence& tokens) {
  int64_t node = 0;
  for (const int32_t token : tokens) {
    node = trie.step(static_cast<uint32_t>(node), static_cast<uint32_t>(token));
    if (node == Trie::kNone) return node;
  }
  return node;
}

/// Wide at the root (blocks with more than 255 children), then narrow; with repeats and prefixes.
std::vector<Sequence> random_sequences(size_t count, int32_t first = 6, int32_t rest = 6,
                                       uint64_t seed = 11) {
  KeyedRandom random(seed, 0);
  std::vector<Sequence> out(count);
  for (Sequence& s : out) {
    s.resize(1 + random.below(5));
    for (size_t d = 0; d < s.size(); ++d) s[d] = static_cast<int32_t>(random.below(d == 0 ? first : rest));
  }
  return out;
}

std::vector<uint32_t> tokens_of(const TokenRange& range) {
  std::vector<uint32_t> out;
  range.for_each([&](uint32_t token) { out.push_back(token); });
  return out;
}

void test_small() {
  const auto trie = build({{5, 2}, {5}, {3, 1, 1}, {5, 2}});
  CHECK(trie->num_nodes() == 6);
  CHECK(trie->num_sequences() == 4 && trie->num_terminals() == 3);
  CHECK((tokens_of(trie->children(0)) == std::vector<uint32_t>{3, 5}));
  const auto node = static_cast<uint32_t>(walk(*trie, {5, 2}));
  CHECK((trie->sequence_ids(node) == std::vector<uint32_t>{0, 3}));
  CHECK(trie->is_terminal(static_cast<uint32_t>(walk(*trie, {5}))));
  CHECK(!trie->is_terminal(static_cast<uint32_t>(walk(*trie, {3, 1}))));
  CHECK(walk(*trie, {4}) == Trie::kNone && walk(*trie, {5, 2, 2}) == Trie::kNone);
  CHECK(trie->uses(5) && !trie->uses(4) && !trie->uses(900) && trie->token_bound() == 6);
  const Sequence text{9, 5, 2, 3, 1, 1, 5};
  const auto five = static_cast<uint32_t>(walk(*trie, {5}));
  const auto three = static_cast<uint32_t>(walk(*trie, {3, 1, 1}));
  CHECK((trie->find(text) == std::vector<Found>{{1, 2, five}, {1, 3, node}, {3, 6, three}, {6, 7, five}}));
}

void test_against_map(const std::vector<Sequence>& sequences) {
  const auto trie = build(sequences);
  CHECK(trie->is_sound());
  std::map<Sequence, std::vector<uint32_t>> expected;
  std::map<Sequence, std::vector<uint32_t>> children{{{}, {}}};
  for (size_t i = 0; i < sequences.size(); ++i) {
    expected[sequences[i]].push_back(static_cast<uint32_t>(i));
    for (size_t d = 0; d < sequences[i].size(); ++d) {
      const Sequence prefix(sequences[i].begin(), sequences[i].begin() + static_cast<long>(d));
      children[Sequence(sequences[i].begin(), sequences[i].begin() + static_cast<long>(d) + 1)];
      children[prefix].push_back(static_cast<uint32_t>(sequences[i][d]));
    }
  }
  CHECK(trie->num_nodes() == children.size());
  CHECK(trie->num_terminals() == expected.size() && trie->num_sequences() == sequences.size());
  for (auto& [prefix, tokens] : children) {
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    const int64_t node = walk(*trie, prefix);
    CHECK(node != Trie::kNone);
    const auto at = static_cast<uint32_t>(node);
    CHECK(tokens_of(trie->children(at)) == tokens);
    const auto it = expected.find(prefix);
    CHECK(trie->sequence_ids(at) == (it == expected.end() ? std::vector<uint32_t>{} : it->second));
    if (it != expected.end()) CHECK(trie->terminal(trie->rank(at)) == at);
    const Sequence above(prefix.begin(), prefix.empty() ? prefix.end() : prefix.end() - 1);
    CHECK(trie->parent(at) == static_cast<uint32_t>(walk(*trie, above)));
  }
  const std::vector<uint32_t> nodes = trie->nodes_of_sequences();
  for (size_t i = 0; i < sequences.size(); ++i)
    CHECK(nodes[i] == static_cast<uint32_t>(walk(*trie, sequences[i])));
}

/// The same bytes whatever the number of threads.
void test_threads() {
  for (const int32_t first : {1, 40, 3000}) {
    const std::vector<Sequence> sequences = random_sequences(30000, first, 9, static_cast<uint64_t>(first));
    Sequence flat;
    std::vector<int64_t> offsets{0};
    for (const Sequence& s : sequences) {
      flat.insert(flat.end(), s.begin(), s.end());
      offsets.push_back(static_cast<int64_t>(flat.size()));
    }
    const Ragged<int32_t> ragged(flat, offsets);
    const auto one = Trie::build(ragged, 1);
    CHECK(one->is_sound());
    for (const unsigned threads : {2U, 3U, 8U}) {
      const auto many = Trie::build(ragged, threads);
      const auto a = one->sections("t");
      const auto b = many->sections("t");
      for (size_t i = 0; i < a.size(); ++i) CHECK(std::ranges::equal(a[i].bytes, b[i].bytes));
    }
  }
}

std::vector<char> read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// Reads all that a reader can reach, so that a sanitizer sees any step outside.
void roam(const Trie& trie) {
  for (uint32_t node = 0; node < trie.num_nodes(); ++node) {
    trie.sequence_ids(node);
    trie.parent(node);
    const TokenRange children = trie.children(node);
    if (!children.empty()) trie.step(node, children[children.size() - 1]);
  }
  trie.nodes_of_sequences();
}

void test_file() {
  const std::string path = (std::filesystem::temp_directory_path() / "obverse_test_trie.bin").string();
  const auto trie = build(random_sequences(400, 300));
  SectionFile::write(path, "fingerprint", trie->sections("x"));
  const auto file = SectionFile::open(path);
  CHECK(file->fingerprint() == "fingerprint" && file->names().size() == 9 && file->has("x.low"));
  file->verify();
  const auto opened = Trie::from_sections(file, "x");
  CHECK(opened->is_sound() && opened->nbytes() == trie->nbytes());
  CHECK(throws<ValueError>([&] { Trie::from_sections(file, "y"); }, path + ": expected a section 'y.low'"));
  const std::vector<char> good = read(path);
  const std::string broken = path + ".broken";
  const auto whole = [&] {
    const auto damaged = SectionFile::open(broken);
    roam(*Trie::from_sections(damaged, "x"));
    damaged->verify();
  };
  size_t padding = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<char> bytes = good;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x10);
    write(broken, bytes);
    padding += throws<ValueError>(whole, broken) ? 0 : 1;
  }
  CHECK(padding < 9 * 64);  // only the zeros between sections are nobody's
  for (size_t size = 0; size < good.size(); size += 7) {
    write(broken, std::vector<char>(good.begin(), good.begin() + static_cast<long>(size)));
    CHECK(throws<ValueError>(whole, broken));
  }
  std::remove(path.c_str());
  std::remove(broken.c_str());
  CHECK(throws<IoError>([&] { SectionFile::open(path); }, "No such file"));
}

void test_errors() {
  CHECK(throws<ValueError>([] { build({}); }, "at least one sequence"));
  CHECK(throws<ValueError>([] { build({{1}, {}}); }, "sequence 1 must hold at least one token"));
  CHECK(throws<ValueError>([] { build({{1, -4}}); }, "got -4 in sequence 0"));
  CHECK(throws<ValueError>([] { build({{1, 1 << 24}}); }, "got 16777216 in sequence 0"));
  const Sequence flat{1, 2};
  const std::vector<int64_t> offsets{0, 3};
  CHECK(throws<ValueError>([&] { Ragged<int32_t>(flat, offsets); },
                           "must end at the flat array's length 2, got 3"));
  const std::string path = (std::filesystem::temp_directory_path() / "obverse_test_sections.bin").string();
  const std::vector<Section> twice{{"a", {}}, {"a", {}}};
  CHECK(throws<ValueError>([&] { SectionFile::write(path, "", twice); }, "got 'a' twice"));
  const std::vector<Section> longer{{std::string(40, 'a'), {}}};
  CHECK(throws<ValueError>([&] { SectionFile::write(path, "", longer); }, "at most 39 bytes"));
}

}  // namespace

int main() {
  test_small();
  test_against_map(random_sequences(3000));
  test_against_map(random_sequences(3000, 900, 4));
  test_against_map(random_sequences(2000, 100000, 70000));
  test_against_map({{0}});
  test_threads();
  test_file();
  test_errors();
  return obverse::testing::report("trie");
}
