#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "check.hpp"
#include "obverse/batch.hpp"
#include "obverse/random.hpp"
#include "obverse/row_states.hpp"

using namespace obverse;
using obverse::testing::throws;

namespace {

using Tokens = std::vector<int32_t>;

std::shared_ptr<const Trie> names(const std::vector<Tokens>& list) {
  Tokens flat;
  std::vector<int64_t> offsets{0};
  for (const Tokens& s : list) {
    flat.insert(flat.end(), s.begin(), s.end());
    offsets.push_back(static_cast<int64_t>(flat.size()));
  }
  return Trie::build(Ragged<int32_t>(flat, offsets));
}

// Token 1 is " [", tokens 2 to 5 are "s]", "r]", "o]", "e]": every marker starts alike. Entity {7, 1, 3, 8}
// holds the relation marker inside, {7} is a prefix of it.
enum class Form { kFullyExpanded, kSubjectCollapsed };
using Mark = std::vector<uint32_t>;

Automaton marked(Form form, const std::array<Mark, 4>& marks, int64_t eos, int64_t vocab_size) {
  const Mark after_object = form == Form::kFullyExpanded ? Mark{6} : Mark{2, 6};
  return Automaton({{Slot::kNone, marks[0], {1}, false},
                    {Slot::kSubject, {}, {2}, false},
                    {Slot::kNone, marks[1], {3}, false},
                    {Slot::kRelation, {}, {4}, false},
                    {Slot::kNone, marks[2], {5}, false},
                    {Slot::kObject, {}, after_object, false},
                    {Slot::kNone, marks[3], {0}, true}},
                   {Slot::kNone, {}, {0}, true}, eos, vocab_size);
}

std::shared_ptr<const Constraint> make(Form form, int64_t vocab_size = 40, const Limits& limits = {}) {
  return std::make_shared<Constraint>(names({{7}, {7, 1, 3, 8}, {9, 9}}), names({{8}, {6, 8}}),
                                      marked(form, {Mark{1, 2}, {1, 3}, {1, 4}, {1, 5}}, 0, vocab_size),
                                      limits);
}

Tokens allowed(const Matcher& matcher) {
  Tokens out;
  matcher.append_allowed(&out);
  return out;
}

bool accept_all(Matcher* matcher, const Tokens& tokens) {
  return std::all_of(tokens.begin(), tokens.end(), [&](int32_t t) { return matcher->accept(t); });
}

void test_ambiguity() {
  Matcher m(make(Form::kFullyExpanded));
  CHECK((allowed(m) == Tokens{0, 1}));
  CHECK(accept_all(&m, {1, 2, 7, 1, 3}));
  // Either inside the entity "7 1 3 8" or after the relation marker: relation names start with 6 or 8.
  CHECK((allowed(m) == Tokens{6, 8}));
  CHECK(m.accept(8));
  // Either the long entity has ended, or the relation 8 has: both go on with " [".
  CHECK((allowed(m) == Tokens{1}));
  CHECK(m.accept(1));
  CHECK((allowed(m) == Tokens{3, 4}));
  CHECK(!m.accept(5) && m.num_accepted() == 7);
  CHECK(accept_all(&m, {4, 9, 9, 1, 5, 0}));
  CHECK(m.is_complete() && allowed(m).empty() && !m.accept(0));
  m.rollback(2);
  CHECK(!m.is_complete() && (allowed(m) == Tokens{5}));
  CHECK(throws<ValueError>([&] { m.rollback(99); }, "rollback must be in [0, 11]"));
}

void test_collapsed() {
  Matcher m(make(Form::kSubjectCollapsed));
  CHECK(accept_all(&m, {1, 2, 9, 9, 1, 3, 8, 1, 4, 9, 9, 1}));
  CHECK((allowed(m) == Tokens{3, 5}));
  Matcher fork = m;
  CHECK(accept_all(&m, {3, 6, 8, 1, 4, 7, 1, 5}) && accept_all(&fork, {5, 1, 2}));
  CHECK((allowed(m) == Tokens{0, 1}) && (allowed(fork) == Tokens{7, 9}));
}

/// Random walks: the bitmask, the list, the batch call and the masked logits say the same.
void test_agreement(Form form, int64_t vocab_size) {
  const auto constraint = make(form, vocab_size);
  KeyedRandom random(3, static_cast<uint64_t>(vocab_size));
  Matcher m(constraint);
  std::vector<int64_t> row;
  const auto width = static_cast<size_t>(vocab_size) + 5;
  for (int step = 0; step < 400; ++step) {
    const Tokens list = allowed(m);
    std::vector<int32_t> words(bitmask_words(static_cast<size_t>(vocab_size)), -1);
    m.fill_bitmask(words);
    std::vector<float> logits(width, 1.5F);
    Matcher* const pointer = &m;
    mask_logits({&pointer, 1}, {logits.data(), 1, width, width});
    for (size_t t = 0; t < words.size() * 32; ++t) {
      const bool in_list = std::binary_search(list.begin(), list.end(), static_cast<int32_t>(t));
      CHECK(((static_cast<uint32_t>(words[t / 32]) >> (t % 32)) & 1U) == (in_list ? 1U : 0U));
      const bool kept = in_list || (m.is_complete() && t == constraint->eos());
      if (t < width) CHECK(logits[t] == (kept ? 1.5F : -std::numeric_limits<float>::infinity()));
    }
    RowStates states(constraint);
    states.advance({row.data(), 1, row.size(), row.size()});
    Tokens from_row;
    states.append_allowed(0, &from_row);
    CHECK(from_row == (list.empty() ? Tokens{0} : list));
    if (list.empty() || row.size() > 60) {
      m.reset();
      row.clear();
      continue;
    }
    row.push_back(list[random.below(list.size())]);
    CHECK(m.accept(row.back()));
  }
}

/// Every rule at once, on threads of their own: what is read alone is read together (a data race shows here under a
/// thread sanitizer).
void test_threads() {
  Limits limits;
  limits.unique = true;
  limits.max_triplets = 3;
  const Tokens subjects{0, 2, 1}, relations{0, 1, 0}, objects{1, 0, 2};
  const GraphRules graph{subjects, relations, objects, false};
  limits.graph = &graph;
  const auto constraint = make(Form::kSubjectCollapsed, 40, limits);
  const auto walk = [&](uint64_t seed) {
    KeyedRandom random(seed, 0);
    Matcher m(constraint);
    Tokens out;
    for (int step = 0; step < 2000; ++step) {
      const Tokens list = allowed(m);
      std::vector<int32_t> words(bitmask_words(40));
      m.fill_bitmask(words);
      if (list.empty()) {
        m.reset();
        continue;
      }
      out.push_back(list[random.below(list.size())]);
      CHECK(m.accept(out.back()));
    }
    return out;
  };
  std::vector<Tokens> alone(4), together(4);
  for (size_t i = 0; i < 4; ++i) alone[i] = walk(i);
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < 4; ++i) threads.emplace_back([&, i] { together[i] = walk(i); });
  }
  CHECK(alone == together);
}

void test_errors() {
  const auto trie = names({{7}});
  const auto build = [&](const std::array<Mark, 4>& marks, int64_t eos, int64_t vocab_size) {
    return [=] { Constraint(trie, trie, marked(Form::kFullyExpanded, marks, eos, vocab_size), {}); };
  };
  CHECK(throws<ValueError>(build({Mark{}, {2}, {3}, {4}}, 0, 9), "parts[0] must hold at least one token"));
  CHECK(throws<ValueError>(build({Mark{1}, {2}, {3}, {9}}, 0, 9),
                           "parts[6] must hold tokens in [0, 9), got 9"));
  CHECK(throws<ValueError>(build({Mark{1}, {2}, {3}, {4}}, 7, 9), "names without eos = 7"));
  CHECK(throws<ValueError>(build({Mark{1}, {2}, {3}, {4}}, 3, 9), "parts[4] must not contain eos"));
  CHECK(throws<ValueError>(build({Mark{1}, {2}, {3}, {4}}, 0, 7),
                           "entities must hold tokens in [0, 7), got 7"));
  std::vector<float> logits(40);
  CHECK(throws<ValueError>([&] { mask_logits({}, {logits.data(), 1, 40, 40}); }, "one matcher a row"));
  using Parts = std::vector<Part>;
  const auto refuse = [](const Parts& parts, const Part& start, const char* text) {
    return throws<ValueError>([&] { Automaton(parts, start, 0, 40); }, text);
  };
  const Part slot{Slot::kSubject, {}, {1}, false};
  const Part literal{Slot::kNone, {1}, {0}, false};
  const Part start{Slot::kNone, {}, {1}, false};
  CHECK(refuse({slot, literal}, {Slot::kNone, {}, {7}, false}, "must lead to parts in [0, 2), got 7"));
  CHECK(refuse({slot, {Slot::kNone, {1}, {}, false}}, start, "must lead somewhere or end"));
  CHECK(refuse({slot, {Slot::kNone, {1}, {0}, true}}, start, "one slot or to literals and the end"));
  CHECK(
      refuse({{Slot::kSubject, {}, {0}, false}}, {Slot::kNone, {}, {0}, false}, "got a slot right after it"));
  CHECK(refuse({slot, {Slot::kNone, {1}, {1}, false}}, {Slot::kNone, {}, {0}, false},
               "goes round in literals"));
  CHECK(refuse({literal}, {Slot::kNone, {}, {0}, false}, "must have a slot"));
  CHECK(refuse({{Slot::kNone, {1}, {}, true}}, {Slot::kNone, {}, {0}, false}, "must have a slot"));
}

}  // namespace

int main() {
  test_ambiguity();
  test_collapsed();
  for (const int64_t vocab_size : {10, 31, 32, 33, 64}) {
    test_agreement(Form::kFullyExpanded, vocab_size);
    test_agreement(Form::kSubjectCollapsed, vocab_size);
  }
  test_threads();
  test_errors();
  return obverse::testing::report("matcher");
}
