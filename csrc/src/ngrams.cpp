#include "obverse/ngrams.hpp"

#include <array>

#include "obverse/random.hpp"

namespace obverse {
namespace {

/// What a byte is in a word: itself, lower-cased where it is an ASCII letter; 0 where it parts words.
constexpr std::array<char, 256> word_bytes() {
  std::array<char, 256> table{};
  for (int b = 0; b < 256; ++b) {
    const bool upper = b >= 'A' && b <= 'Z';
    const bool word = upper || (b >= 'a' && b <= 'z') || (b >= '0' && b <= '9') || b == '_' || b >= 128;
    table[static_cast<size_t>(b)] = static_cast<char>(!word ? 0 : upper ? b + 'a' - 'A' : b);
  }
  return table;
}
constexpr std::array<char, 256> kWordBytes = word_bytes();

}  // namespace

uint32_t Vocabulary::number(std::string_view word, uint64_t hash) {
  const size_t mask = slots_.size() - 1;
  for (size_t s = hash & mask;; s = (s + 1) & mask) {
    const uint32_t n = slots_[s];
    if (n == kNone) {
      require(hashes_.size() < kNone, "texts may have at most 2^32 - 1 different words");
      slots_[s] = static_cast<uint32_t>(hashes_.size());
      hashes_.push_back(hash);
      bytes_.insert(bytes_.end(), word.begin(), word.end());
      starts_.push_back(bytes_.size());
      if (2 * hashes_.size() > slots_.size()) grow();
      return static_cast<uint32_t>(hashes_.size() - 1);
    }
    if (hashes_[n] == hash &&
        std::string_view(bytes_.data() + starts_[n], starts_[n + 1] - starts_[n]) == word) {
      return n;
    }
  }
}

void Vocabulary::grow() {
  slots_.assign(2 * slots_.size(), kNone);
  const size_t mask = slots_.size() - 1;
  for (size_t n = 0; n < hashes_.size(); ++n) {
    size_t s = hashes_[n] & mask;
    while (slots_[s] != kNone) s = (s + 1) & mask;
    slots_[s] = static_cast<uint32_t>(n);
  }
}

size_t Vocabulary::nbytes() const {
  return slots_.capacity() * sizeof(uint32_t) + hashes_.capacity() * sizeof(uint64_t) +
         starts_.capacity() * sizeof(size_t) + bytes_.capacity();
}

void WordTexts::add(span<const std::string_view> texts) {
  offsets_.reserve(offsets_.size() + texts.size());
  std::vector<char> lower;
  for (const std::string_view text : texts) {
    uint64_t h = 0;
    const auto end_word = [&] {
      if (lower.empty()) return;
      words_.push_back(vocabulary_.number({lower.data(), lower.size()}, mix64(h)));
      lower.clear();
      h = 0;
    };
    for (const char byte : text) {
      const char c = kWordBytes[static_cast<unsigned char>(byte)];
      if (c == 0) {
        end_word();
      } else {
        lower.push_back(c);
        h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
      }
    }
    end_word();
    offsets_.push_back(static_cast<int64_t>(words_.size()));
  }
}

size_t WordTexts::nbytes() const {
  return vocabulary_.nbytes() + words_.capacity() * sizeof(uint32_t) + offsets_.capacity() * sizeof(int64_t);
}

}  // namespace obverse
