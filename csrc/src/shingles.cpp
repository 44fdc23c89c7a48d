#include "shingles.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "obverse/error.hpp"
#include "obverse/random.hpp"

namespace obverse {
namespace {

constexpr uint32_t kShort = 7;  // bytes that fit a key beside their number

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

bool is_ascii(std::string_view text) {
  unsigned char all = 0;
  for (const char byte : text) all = static_cast<unsigned char>(all | static_cast<unsigned char>(byte));
  return all < 0x80U;
}

/// FNV-1a with a final mix: short inputs, no alignment or byte-order dependence.
uint32_t hash_bytes(std::string_view bytes, uint64_t seed) {
  uint64_t h = 0xCBF29CE484222325ULL ^ seed;
  for (const char byte : bytes) h = (h ^ static_cast<unsigned char>(byte)) * 0x100000001B3ULL;
  return static_cast<uint32_t>(mix64(h) >> 32);
}

/// Different for different shingles of up to 7 bytes; a hash for longer ones, with another last byte.
uint64_t key_of(std::string_view text, uint32_t start, uint32_t length) {
  if (length > kShort) {
    const std::string_view bytes = text.substr(start, length);
    return uint64_t{hash_bytes(bytes, 0)} | 0xFFULL << 56;
  }
  uint64_t word = 0;
  if (start + 8 <= text.size()) {
    std::memcpy(&word, text.data() + start, 8);
    if constexpr (std::endian::native == std::endian::little) {
      word &= (1ULL << 8 * length) - 1;
    } else {
      word = length == 0 ? 0 : word >> 8 * (8 - length);
    }
  } else {
    // The same number byte by byte, so that both ways agree on either byte order.
    for (uint32_t i = 0; i < length; ++i) {
      const uint64_t byte = static_cast<unsigned char>(text[start + i]);
      word = std::endian::native == std::endian::little ? word | byte << 8 * i : word << 8 | byte;
    }
  }
  return word | uint64_t{length} << 56;
}

/// Calls visit(start, length) for each shingle while it gives true.
template <typename Visit>
void each_shingle(std::string_view text, size_t ngram, std::vector<uint32_t>* starts, const Visit& visit) {
  if (is_ascii(text)) {
    require(text.size() < 0xFFFFFFFFU, "a text must be shorter than 4 GiB, got ", text.size(), " bytes");
    const auto size = static_cast<uint32_t>(text.size()), n = static_cast<uint32_t>(ngram);
    if (size <= n) {
      visit(0U, size);
      return;
    }
    for (uint32_t start = 0; start + n <= size; ++start) {
      if (!visit(start, n)) return;
    }
    return;
  }
  character_starts(text, starts);
  const std::vector<uint32_t>& at = *starts;
  if (at.size() - 1 <= ngram) {
    visit(0U, at.back());
    return;
  }
  for (size_t i = 0; i + ngram < at.size(); ++i) {
    if (!visit(at[i], at[i + ngram] - at[i])) return;
  }
}

}  // namespace

void character_starts(std::string_view text, std::vector<uint32_t>* starts) {
  require(text.size() < 0xFFFFFFFFU, "a text must be shorter than 4 GiB, got ", text.size(), " bytes");
  starts->clear();
  for (size_t i = 0; i < text.size(); ++i) {
    if (!is_continuation(text[i])) starts->push_back(static_cast<uint32_t>(i));
  }
  starts->push_back(static_cast<uint32_t>(text.size()));
}

void hash_shingles(std::string_view text, size_t ngram, uint64_t mixed_seed, std::vector<uint32_t>* starts,
                   std::vector<uint32_t>* hashes) {
  hashes->clear();
  each_shingle(text, ngram, starts, [&](uint32_t start, uint32_t length) {
    hashes->push_back(hash_bytes(text.substr(start, length), mixed_seed));
    return true;
  });
}

ShingleSet::Slot& ShingleSet::slot(std::string_view text, uint64_t key, uint32_t start, uint32_t length) {
  for (size_t s = (key * 0x9E3779B97F4A7C15ULL) >> shift_;; s = (s + 1) & (slots_.size() - 1)) {
    Slot& found = slots_[s];
    if (found.filled_at != set_) return found;
    if (found.key != key) continue;
    if (length <= kShort) return found;
    if (found.length == length && std::memcmp(text_.data() + found.start, text.data() + start, length) == 0) {
      return found;
    }
  }
}

size_t ShingleSet::assign(std::string_view text, size_t ngram) {
  // There are no more shingles than bytes, but for the empty text's one.
  const size_t room = std::max<size_t>(256, std::bit_ceil(2 * text.size()));
  if (room > slots_.size()) {
    slots_.assign(room, Slot{});
    shift_ = 64 - std::countr_zero(room);
  }
  set_ = ++clock_;
  text_ = text;
  size_t count = 0;
  each_shingle(text, ngram, &starts_, [&](uint32_t start, uint32_t length) {
    const uint64_t key = key_of(text, start, length);
    Slot& found = slot(text, key, start, length);
    if (found.filled_at != set_) {
      found = {key, start, length, set_, 0};
      ++count;
    }
    return true;
  });
  return count;
}

size_t ShingleSet::count_shared(std::string_view text, size_t ngram, size_t needed) {
  ++clock_;
  size_t count = 0;
  // No more shingles are left than bytes; where these can't make up what is needed, the rest isn't looked at.
  each_shingle(text, ngram, &starts_, [&](uint32_t start, uint32_t length) {
    Slot& found = slot(text, key_of(text, start, length), start, length);
    if (found.filled_at == set_ && found.shared_at != clock_) {
      found.shared_at = clock_;
      ++count;
    }
    return count + (text.size() - start) >= needed;
  });
  return count;
}

}  // namespace obverse
