// The trie's file: 64 bytes of header, then the buffer of trie.hpp, little-endian.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "obverse/random.hpp"
#include "obverse/trie.hpp"

namespace obverse {
namespace {

constexpr std::array<char, 8> kMagic{'O', 'B', 'V', 'T', 'R', 'I', 'E', '\0'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kByteOrder = 0x01020304;

struct Header {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t byte_order;
  uint64_t num_nodes;
  uint64_t num_sequences;
  uint64_t num_terminals;
  uint64_t num_words;
  uint64_t reserved;
  uint64_t checksum;
};
static_assert(sizeof(Header) == 64);

/// Four independent multiply-xor lanes over the words, then the counts. Every step is a bijection of its
/// lane, so one changed word always shows.
uint64_t checksum(span<const uint32_t> words, const Header& header) {
  constexpr uint64_t kPrime = 0x9FB21C651E98DF25ULL;
  std::array<uint64_t, 4> lanes{1, 2, 3, 4};
  size_t i = 0;
  for (; i + 4 <= words.size(); i += 4) {
    for (size_t k = 0; k < 4; ++k) lanes[k] = std::rotl((lanes[k] ^ words[i + k]) * kPrime, 29);
  }
  for (; i < words.size(); ++i) lanes[i % 4] = std::rotl((lanes[i % 4] ^ words[i]) * kPrime, 29);
  uint64_t sum = mix64(header.num_nodes) ^ mix64(header.num_sequences + 1);
  sum = mix64(sum ^ header.num_terminals) ^ mix64(header.num_words);
  for (const uint64_t lane : lanes) sum = mix64(sum ^ lane);
  return sum;
}

bool is_rising(span<const uint32_t> values) { return std::is_sorted(values.begin(), values.end()); }

}  // namespace

void Trie::save(const std::string& path) const {
  static_assert(std::endian::native == std::endian::little,
                "the trie's file is little-endian, as its memory is");
  Header header{
      kMagic,         kVersion, kByteOrder, num_nodes(), num_sequences(), sequence_offsets_.size() - 1,
      buffer_.size(), 0,        0};
  header.checksum = checksum(buffer_, header);
  const std::array<span<const std::byte>, 2> parts{std::as_bytes(span<const Header>(&header, 1)),
                                                   std::as_bytes(buffer_)};
  write_whole_file(path, parts);
}

std::shared_ptr<const Trie> Trie::open(const std::string& path) {
  auto file = std::make_unique<MappedFile>(path);
  const span<const std::byte> bytes = file->bytes();
  require(bytes.size() >= sizeof(Header), path, ": expected a trie file of at least ", sizeof(Header),
          " bytes, got ", bytes.size());
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(Header));
  require(header.magic == kMagic, path,
          ": expected a trie file (it must start with OBVTRIE), got other bytes");
  require(header.byte_order == kByteOrder, path,
          ": expected a little-endian trie file, got another byte order");
  require(header.version == kVersion, path, ": expected trie file version ", kVersion, ", got ",
          header.version);
  const Shape shape{header.num_nodes, header.num_sequences, header.num_terminals};
  const uint64_t limit = uint64_t{1} << 32;
  require(shape.num_nodes > 0 && shape.num_nodes < limit && shape.num_sequences < limit &&
              shape.num_terminals <= shape.num_sequences && header.num_words == num_words(shape) &&
              header.reserved == 0,
          path, ": damaged trie file: its counts contradict one another");
  const uint64_t expected = sizeof(Header) + header.num_words * sizeof(uint32_t);
  require(bytes.size() == expected, path, ": damaged trie file: expected ", expected, " bytes, got ",
          bytes.size());
  const span<const uint32_t> buffer(reinterpret_cast<const uint32_t*>(bytes.data() + sizeof(Header)),
                                    static_cast<size_t>(header.num_words));
  require(checksum(buffer, header) == header.checksum, path,
          ": damaged trie file: its checksum does not match");
  std::shared_ptr<Trie> trie(new Trie());
  trie->file_ = std::move(file);
  trie->attach(shape, buffer);
  require(trie->is_sound(), path, ": damaged trie file: its indices point outside it");
  return trie;
}

/// Whether every index that a reader will follow stays inside: a crafted file with a right checksum must not
/// lead out of the mapping or round in circles.
bool Trie::is_sound() const {
  if (first_child_.front() != 1 || first_child_.back() != num_nodes() || !is_rising(first_child_))
    return false;
  for (size_t node = 0; node < num_nodes(); ++node) {
    if (first_child_[node] <= node) return false;
  }
  uint64_t num_terminals = 0;
  for (size_t w = 0; w < terminal_.size(); ++w) {
    if (rank_[w] != num_terminals) return false;
    num_terminals += static_cast<uint64_t>(std::popcount(terminal_[w]));
  }
  const bool offsets_sound = num_terminals + 1 == sequence_offsets_.size() &&
                             sequence_offsets_.front() == 0 && sequence_offsets_.back() == num_sequences() &&
                             is_rising(sequence_offsets_);
  return offsets_sound && std::all_of(sequence_ids_.begin(), sequence_ids_.end(),
                                      [&](uint32_t id) { return id < num_sequences(); });
}

}  // namespace obverse
