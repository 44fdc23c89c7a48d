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

std::vector<Sequence> random_sequences(size_t count) {
  KeyedRandom random(11, 0);
  std::vector<Sequence> out(count);
  for (Sequence& s : out) {
    s.resize(1 + random.below(5));
    for (int32_t& token : s) token = static_cast<int32_t>(random.below(6));
  }
  return out;
}

void test_small() {
  const auto trie = build({{5, 2}, {5}, {3, 1, 1}, {5, 2}});
  CHECK(trie->num_nodes() == 6);
  CHECK(trie->num_sequences() == 4);
  CHECK(std::ranges::equal(trie->children(0), std::vector<uint32_t>{3, 5}));
  const auto node = static_cast<uint32_t>(walk(*trie, {5, 2}));
  CHECK(std::ranges::equal(trie->sequence_ids(node), std::vector<uint32_t>{0, 3}));
  CHECK(trie->is_terminal(static_cast<uint32_t>(walk(*trie, {5}))));
  CHECK(!trie->is_terminal(static_cast<uint32_t>(walk(*trie, {3, 1}))));
  CHECK(walk(*trie, {4}) == Trie::kNone && walk(*trie, {5, 2, 2}) == Trie::kNone);
}

void test_against_map() {
  const std::vector<Sequence> sequences = random_sequences(3000);
  const auto trie = build(sequences);
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
  for (auto& [prefix, tokens] : children) {
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    const int64_t node = walk(*trie, prefix);
    CHECK(node != Trie::kNone);
    CHECK(std::ranges::equal(trie->children(static_cast<uint32_t>(node)), tokens));
    const auto it = expected.find(prefix);
    const std::vector<uint32_t> ids = it == expected.end() ? std::vector<uint32_t>{} : it->second;
    CHECK(std::ranges::equal(trie->sequence_ids(static_cast<uint32_t>(node)), ids));
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

void test_file() {
  const std::string path = (std::filesystem::temp_directory_path() / "obverse_test_trie.bin").string();
  const auto trie = build(random_sequences(40));
  trie->save(path);
  const auto opened = Trie::open(path);
  CHECK(opened->num_nodes() == trie->num_nodes() && opened->nbytes() == trie->nbytes());
  CHECK(std::ranges::equal(opened->tokens(), trie->tokens()));
  const std::vector<char> good = read(path);
  const std::string broken = path + ".broken";
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<char> bytes = good;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x10);
    write(broken, bytes);
    CHECK(throws<ValueError>([&] { Trie::open(broken); }, broken));
  }
  for (size_t size = 0; size < good.size(); size += 7) {
    write(broken, std::vector<char>(good.begin(), good.begin() + static_cast<long>(size)));
    CHECK(throws<ValueError>([&] { Trie::open(broken); }, broken));
  }
  std::remove(path.c_str());
  std::remove(broken.c_str());
  CHECK(throws<IoError>([&] { Trie::open(path); }, "No such file"));
}

void test_errors() {
  CHECK(throws<ValueError>([] { build({}); }, "at least one sequence"));
  CHECK(throws<ValueError>([] { build({{1}, {}}); }, "sequence 1 must hold at least one token"));
  CHECK(throws<ValueError>([] { build({{1, -4}}); }, "tokens[1] = -4"));
  const Sequence flat{1, 2};
  const std::vector<int64_t> offsets{0, 3};
  CHECK(throws<ValueError>([&] { Ragged<int32_t>(flat, offsets); },
                           "must end at the flat array's length 2, got 3"));
}

}  // namespace

int main() {
  test_small();
  test_against_map();
  test_file();
  test_errors();
  return obverse::testing::report("trie");
}
