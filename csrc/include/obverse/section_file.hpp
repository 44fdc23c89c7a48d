// One little-endian file of named byte sections, mapped read-only: what a catalogue is on disk.
//
//   header   128 bytes: magic, version, byte order, file size, number of sections, fingerprint, checksum
//   table    64 bytes a section: name, offset, size, checksum
//   sections each starting at a multiple of 64 bytes
//
// Cost: opening reads the header and the table, whatever the file's size; pages of a section are read when touched and
// shared by every process that maps the file. Checksums of the sections are compared only by verify(), so readers of
// sections must stay inside their spans whatever the bytes are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "obverse/mapped_file.hpp"
#include "obverse/span.hpp"

namespace obverse {

/// A section to write. The bytes are borrowed.
struct Section {
  std::string name;  // 1 to 39 bytes
  span<const std::byte> bytes;
};

/// Immutable and thread-safe.
class SectionFile {
 public:
  /// Writes header, table and sections under a temporary name, fsyncs, renames. `fingerprint` holds at most 63 bytes.
  /// Throws ValueError on a name or fingerprint that is too long or repeated, IoError where the system refuses.
  static void write(const std::string& path, std::string_view fingerprint, span<const Section> sections);
  /// Throws IoError where the file can't be mapped, ValueError (with its name) where header or table are not whole.
  static std::shared_ptr<const SectionFile> open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::string& fingerprint() const { return fingerprint_; }
  const std::vector<std::string>& names() const { return names_; }
  bool has(std::string_view name) const;
  /// Throws ValueError where there is no such section.
  span<const std::byte> section(std::string_view name) const;
  /// The section as items of T. Throws ValueError where it is absent or its size is no multiple of T's.
  template <typename T>
  span<const T> section_as(std::string_view name) const {
    const span<const std::byte> bytes = section(name);
    require(bytes.size() % sizeof(T) == 0, path_, ": damaged file: section ", name, " must hold items of ",
            sizeof(T), " bytes, got ", bytes.size(), " bytes");
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
  /// Reads every section and compares its checksum. Throws ValueError with the file and the section.
  void verify() const;

 private:
  explicit SectionFile(const std::string& path) : file_(path), path_(path) {}
  size_t find(std::string_view name) const;

  MappedFile file_;
  std::string path_;
  std::string fingerprint_;
  std::vector<std::string> names_;
  std::vector<span<const std::byte>> sections_;
  std::vector<uint64_t> checksums_;
};

}  // namespace obverse
