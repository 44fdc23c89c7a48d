#include "obverse/mapped_file.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>

#if __has_include(<sys/mman.h>)
#define OBVERSE_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace obverse {
namespace {

[[noreturn]] void fail(int code, const std::string& path) { throw IoError(code, std::strerror(code), path); }

}  // namespace

#ifdef OBVERSE_HAS_MMAP

MappedFile::MappedFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(errno, path);
  struct stat info{};
  if (::fstat(file, &info) != 0 || S_ISDIR(info.st_mode)) {
    const int code = S_ISDIR(info.st_mode) ? EISDIR : errno;
    ::close(file);
    fail(code, path);
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    ::close(file);
    return;  // an empty file can't be mapped, and its reader will say what is missing
  }
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  const int code = errno;
  ::close(file);
  if (data == MAP_FAILED) fail(code, path);
  bytes_ = {static_cast<const std::byte*>(data), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

#else

MappedFile::MappedFile(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) fail(errno, path);
  std::byte buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof(buffer), file)) > 0)
    copy_.insert(copy_.end(), buffer, buffer + count);
  const bool bad = std::ferror(file) != 0;
  std::fclose(file);
  if (bad) fail(EIO, path);
  bytes_ = copy_;
}

MappedFile::~MappedFile() = default;

#endif

void write_whole_file(const std::string& path, span<const span<const std::byte>> parts) {
#ifdef OBVERSE_HAS_MMAP
  const std::string temporary = concat(path, ".", ::getpid(), ".tmp");
#else
  const std::string temporary = path + ".tmp";
#endif
  std::FILE* const file = std::fopen(temporary.c_str(), "wb");
  if (file == nullptr) fail(errno, path);
  bool good = true;
  for (const auto part : parts) {
    good = good && (part.empty() || std::fwrite(part.data(), 1, part.size(), file) == part.size());
  }
  good = good && std::fflush(file) == 0;
#ifdef OBVERSE_HAS_MMAP
  good = good && ::fsync(::fileno(file)) == 0;
#endif
  int code = errno;
  if (std::fclose(file) != 0 && good) {
    code = errno;
    good = false;
  }
  if (good && std::rename(temporary.c_str(), path.c_str()) != 0) {
    code = errno;
    good = false;
  }
  if (!good) {
    std::remove(temporary.c_str());
    fail(code, path);
  }
}

}  // namespace obverse
