// The file loader under hostile bytes: whatever they are, opening and reading either says what is wrong or works,
// and never leaves the mapping. LLVMFuzzerTestOneInput is libFuzzer's entry; driver.cpp calls it without libFuzzer.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "obverse/matcher.hpp"
#include "obverse/row_states.hpp"
#include "obverse/section_file.hpp"

namespace {

using namespace obverse;

void roam(const Trie& trie) {
  const auto limit = static_cast<uint32_t>(trie.num_nodes());
  for (uint32_t node = 0; node < limit; ++node) {
    trie.sequence_ids(node);
    trie.parent(node);
    const TokenRange children = trie.children(node);
    if (!children.empty()) trie.step(node, children[children.size() / 2]);
  }
  for (uint32_t rank = 0; rank < trie.num_terminals(); ++rank) trie.terminal(rank);
  trie.nodes_of_sequences();
  const std::vector<int32_t> text{1, 2, 3, 4, 1, 2, 900, 70000, -3, 5, 6};
  trie.find(text);
}

void decode(const std::shared_ptr<const Trie>& trie, bool with_rules) {
  const Part end{Slot::kNone, {65, 68}, {0}, true};
  const Automaton automaton({{Slot::kNone, {65, 66}, {1}, false},
                             {Slot::kSubject, {}, {2}, false},
                             {Slot::kNone, {65, 67}, {3}, false},
                             {Slot::kRelation, {}, {4}, false},
                             {Slot::kNone, {69}, {5}, false},
                             {Slot::kObject, {}, {2, 6}, false},
                             end},
                            {Slot::kNone, {}, {0}, true}, 64, 70);
  Limits limits;
  limits.unique = with_rules;
  const auto constraint = std::make_shared<Constraint>(trie, trie, automaton, limits);
  std::vector<uint32_t> some;
  for (uint32_t node = 0; node < trie->num_nodes() && some.size() < 5; ++node) {
    if (trie->is_terminal(node)) some.push_back(node);
  }
  for (const bool subset : {false, true}) {
    Matcher matcher(constraint, subset ? std::make_shared<Subset>(trie, some) : nullptr);
    std::vector<int32_t> allowed, words(bitmask_words(70));
    for (uint32_t step = 0; step < 60; ++step) {
      allowed.clear();
      matcher.append_allowed(&allowed);
      matcher.fill_bitmask(words);
      if (allowed.empty() || !matcher.accept(allowed[(step * 7) % allowed.size()])) break;
    }
  }
}

const std::string& file_name() {
  static const std::string name = [] {
    const char* folder = std::getenv("TMPDIR");
    return std::string(folder == nullptr ? "/tmp" : folder) + "/obverse-fuzz-" + std::to_string(::getpid());
  }();
  return name;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::ofstream(file_name(), std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const auto file = SectionFile::open(file_name());
    const auto trie = Trie::from_sections(file, "x");
    roam(*trie);
    trie->is_sound();
    decode(trie, false);
    decode(trie, true);
    file->verify();
  } catch (const ValueError& error) {
    // Every refusal names the file or the value; an empty one would be as bad as none.
    if (std::string(error.what()).empty()) std::abort();
  }
  return 0;
}
