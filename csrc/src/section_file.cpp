#include "obverse/section_file.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "obverse/random.hpp"

namespace obverse {
namespace {

constexpr std::array<char, 8> kMagic{'O', 'B', 'V', 'N', 'A', 'M', 'E', 'S'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kByteOrder = 0x01020304;
constexpr size_t kAlign = 64;
constexpr uint32_t kMaxSections = 4096;

struct Header {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t byte_order;
  uint64_t file_size;
  uint32_t num_sections;
  uint32_t reserved;
  std::array<char, 64> fingerprint;
  std::array<uint64_t, 3> reserved_words;
  uint64_t checksum;  // of this header with checksum = 0, then the table
};
static_assert(sizeof(Header) == 128);

struct Entry {
  std::array<char, 40> name;
  uint64_t offset;
  uint64_t size;
  uint64_t checksum;
};
static_assert(sizeof(Entry) == 64);

/// Four independent multiply-xor lanes over 64-bit words, then the tail and the size. Every step is a bijection of its
/// lane, so one changed word always shows.
uint64_t checksum(span<const std::byte> bytes) {
  constexpr uint64_t kPrime = 0x9FB21C651E98DF25ULL;
  std::array<uint64_t, 4> lanes{1, 2, 3, 4};
  size_t at = 0;
  for (; at + 32 <= bytes.size(); at += 32) {
    std::array<uint64_t, 4> words;
    std::memcpy(words.data(), bytes.data() + at, 32);
    for (size_t k = 0; k < 4; ++k) lanes[k] = std::rotl((lanes[k] ^ words[k]) * kPrime, 29);
  }
  std::array<uint64_t, 4> tail{};
  if (at < bytes.size()) std::memcpy(tail.data(), bytes.data() + at, bytes.size() - at);
  for (size_t k = 0; k < 4; ++k) lanes[k] = std::rotl((lanes[k] ^ tail[k]) * kPrime, 29);
  uint64_t sum = mix64(bytes.size() + 1);
  for (const uint64_t lane : lanes) sum = mix64(sum ^ lane);
  return sum;
}

uint64_t table_checksum(Header header, span<const Entry> entries) {
  header.checksum = 0;
  return mix64(checksum(std::as_bytes(span<const Header>(&header, 1))) ^ checksum(std::as_bytes(entries)));
}

template <size_t N>
void copy_text(std::string_view text, const char* what, std::array<char, N>* out) {
  require(text.size() < N && text.find('\0') == std::string_view::npos, what, " must hold at most ", N - 1,
          " bytes and no zero byte, got ", text.size(), " bytes");
  out->fill('\0');
  std::copy(text.begin(), text.end(), out->begin());
}

template <size_t N>
std::string text_of(const std::array<char, N>& chars) {
  return {chars.data(), static_cast<size_t>(std::find(chars.begin(), chars.end(), '\0') - chars.begin())};
}

uint64_t aligned(uint64_t at) { return (at + kAlign - 1) / kAlign * kAlign; }

}  // namespace

void SectionFile::write(const std::string& path, std::string_view fingerprint, span<const Section> sections) {
  static_assert(std::endian::native == std::endian::little, "the file is little-endian, as memory is here");
  require(sections.size() <= kMaxSections, "a file holds at most ", kMaxSections, " sections, got ",
          sections.size());
  Header header{kMagic, kVersion, kByteOrder, 0, static_cast<uint32_t>(sections.size()), 0, {}, {}, 0};
  copy_text(fingerprint, "fingerprint", &header.fingerprint);
  std::vector<Entry> entries(sections.size());
  uint64_t at = sizeof(Header) + entries.size() * sizeof(Entry);
  for (size_t i = 0; i < sections.size(); ++i) {
    require(!sections[i].name.empty(), "sections[", i, "] must have a name, got none");
    copy_text(sections[i].name, "a section's name", &entries[i].name);
    for (size_t j = 0; j < i; ++j) {
      require(sections[j].name != sections[i].name, "section names must differ, got '", sections[i].name,
              "' twice");
    }
    at = aligned(at);
    entries[i].offset = at;
    entries[i].size = sections[i].bytes.size();
    entries[i].checksum = checksum(sections[i].bytes);
    at += sections[i].bytes.size();
  }
  header.file_size = at;
  header.checksum = table_checksum(header, entries);

  constexpr std::array<std::byte, kAlign> kZeros{};
  std::vector<span<const std::byte>> parts{std::as_bytes(span<const Header>(&header, 1)),
                                           std::as_bytes(span<const Entry>(entries))};
  uint64_t written = sizeof(Header) + entries.size() * sizeof(Entry);
  for (size_t i = 0; i < sections.size(); ++i) {
    parts.push_back(span<const std::byte>(kZeros).first(static_cast<size_t>(entries[i].offset - written)));
    parts.push_back(sections[i].bytes);
    written = entries[i].offset + entries[i].size;
  }
  write_whole_file(path, parts);
}

std::shared_ptr<const SectionFile> SectionFile::open(const std::string& path) {
  std::shared_ptr<SectionFile> self(new SectionFile(path));
  const span<const std::byte> bytes = self->file_.bytes();
  require(bytes.size() >= sizeof(Header), path, ": expected an Obverse catalogue of at least ",
          sizeof(Header), " bytes, got ", bytes.size());
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(Header));
  require(header.magic == kMagic, path,
          ": expected an Obverse catalogue (it must start with OBVNAMES), got other bytes");
  require(header.byte_order == kByteOrder, path, ": expected a little-endian file, got another byte order");
  require(header.version == kVersion, path, ": expected file version ", kVersion, ", got ", header.version);
  require(header.file_size == bytes.size(), path, ": damaged file: expected ", header.file_size,
          " bytes, got ", bytes.size());
  const uint64_t table_end = sizeof(Header) + uint64_t{header.num_sections} * sizeof(Entry);
  require(header.num_sections <= kMaxSections && table_end <= bytes.size(), path,
          ": damaged file: its section table does not fit it");
  std::vector<Entry> entries(header.num_sections);
  if (!entries.empty())
    std::memcpy(entries.data(), bytes.data() + sizeof(Header), entries.size() * sizeof(Entry));
  require(header.checksum == table_checksum(header, entries), path,
          ": damaged file: the checksum of its header does not match");
  self->fingerprint_ = text_of(header.fingerprint);
  for (const Entry& entry : entries) {
    require(entry.offset % kAlign == 0 && entry.offset >= table_end && entry.offset <= bytes.size() &&
                entry.size <= bytes.size() - entry.offset,
            path, ": damaged file: section ", text_of(entry.name), " lies outside it");
    self->names_.push_back(text_of(entry.name));
    self->sections_.push_back(
        bytes.subspan(static_cast<size_t>(entry.offset), static_cast<size_t>(entry.size)));
    self->checksums_.push_back(entry.checksum);
  }
  return self;
}

size_t SectionFile::find(std::string_view name) const {
  return static_cast<size_t>(std::find(names_.begin(), names_.end(), name) - names_.begin());
}

bool SectionFile::has(std::string_view name) const { return find(name) < names_.size(); }

span<const std::byte> SectionFile::section(std::string_view name) const {
  const size_t i = find(name);
  require(i < names_.size(), path_, ": expected a section '", name, "', got none");
  return sections_[i];
}

void SectionFile::verify() const {
  for (size_t i = 0; i < sections_.size(); ++i) {
    require(checksum(sections_[i]) == checksums_[i], path_, ": damaged file: the checksum of section '",
            names_[i], "' does not match");
  }
}

}  // namespace obverse
