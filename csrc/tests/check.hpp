// The whole of the native tests' framework: CHECK prints where and what, main returns how many failed.
#pragma once

#include <cstdio>
#include <string>

namespace obverse::testing {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void check(bool condition, const char* text, const char* file, int line) {
  if (condition) return;
  ++failures();
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, text);
}

/// Whether `call` throws Error with `part` in its message.
template <typename Error, typename Call>
bool throws(const Call& call, const std::string& part) {
  try {
    call();
  } catch (const Error& error) {
    if (std::string(error.what()).find(part) != std::string::npos) return true;
    std::fprintf(stderr, "message was: %s\n", error.what());
  }
  return false;
}

inline int report(const char* name) {
  std::printf("%s: %s (%d failed)\n", name, failures() == 0 ? "passed" : "FAILED", failures());
  return failures() == 0 ? 0 : 1;
}

}  // namespace obverse::testing

#define CHECK(condition) ::obverse::testing::check((condition), #condition, __FILE__, __LINE__)
