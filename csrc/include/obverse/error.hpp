// The three ways the core refuses: a bad value, a bad index, a file that can't be read or written.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace obverse {

/// An argument or a file's content is not what it must be; the text says expected and got. Python:
/// ValueError.
class ValueError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// An index lies outside its range. Python: IndexError.
class IndexError : public std::out_of_range {
 public:
  using std::out_of_range::out_of_range;
};

/// The system refused a file operation. Python: OSError with errno and file name.
class IoError : public std::runtime_error {
 public:
  IoError(int code, const std::string& what, std::string path)
      : std::runtime_error(what), code_(code), path_(std::move(path)) {}
  int code() const { return code_; }
  const std::string& path() const { return path_; }

 private:
  int code_;
  std::string path_;
};

/// Joins its arguments as text, for messages.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws ValueError with the joined message unless `condition` holds.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    throw ValueError(concat(parts...));
  }
}

}  // namespace obverse
