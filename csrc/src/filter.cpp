#include <algorithm>

#include "obverse/rules.hpp"

namespace obverse {

bool Filter::is_empty() const {
  if (only != nullptr) return !any_bit(open, 0, static_cast<uint32_t>(only->terminals().size()));
  return (base != nullptr && !base->reaches(0)) || (!dead.empty() && dead.front() == 0);
}

bool Filter::holds(uint32_t terminal) const {
  if (only != nullptr) {
    const size_t at = only->find_terminal(terminal);
    return at < only->terminals().size() && ((open[at / 64] >> (at % 64)) & 1U) != 0;
  }
  if (base != nullptr && !base->holds(trie->rank(terminal))) return false;
  return !std::binary_search(taken_out.begin(), taken_out.end(), terminal);
}

bool Filter::reaches(uint32_t node) const {
  if (only != nullptr) {
    const size_t at = only->find(node);
    if (at == only->nodes().size()) return false;
    const auto [begin, end] = only->run(at);
    return any_bit(open, begin, end);
  }
  if (base != nullptr && !base->reaches(node)) return false;
  return !std::binary_search(dead.begin(), dead.end(), node);
}

}  // namespace obverse
