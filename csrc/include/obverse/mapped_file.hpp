// A read-only file in memory: mapped where the system can, read where it can't.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "obverse/span.hpp"

namespace obverse {

/// Owns the mapping; the bytes are valid, and aligned to 16 at least, as long as it lives.
class MappedFile {
 public:
  /// Throws IoError where the file can't be opened, sized or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  span<const std::byte> bytes() const { return bytes_; }

 private:
  span<const std::byte> bytes_;
  std::vector<std::byte> copy_;  // used only without mmap
};

/// Writes `parts` end to end under a temporary name, then renames, so that `path` is never half written.
/// Throws IoError; the temporary file is removed.
void write_whole_file(const std::string& path, span<const span<const std::byte>> parts);

}  // namespace obverse
