// Loops over threads. By OpenMP where the core is compiled with it: torch's workers are then ours too (one
// libgomp in the process); a pool of our own would have to fight them for the cores, for they spin while idle.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace obverse {

/// The first thing thrown by any of several threads, kept until they have all ended.
class ThrownByThreads {
 public:
  template <typename Call>
  void guard(const Call& call) {
    try {
      call();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

/// Calls `body(first, last, thread)` for even shares of [0, n) on at most `threads` threads (thread < threads),
/// of `grain` items at least; a single share runs on the calling thread. Rethrows what a share threw.
template <typename Body>
void parallel_for(int threads, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t most = (n + grain - 1) / grain;
  const int64_t shares = most < threads ? most : threads;
  if (shares <= 1) {
    body(int64_t{0}, n, 0);
    return;
  }
  const int64_t each = n / shares, more = n % shares;
  ThrownByThreads thrown;
  const auto share = [&](int64_t i) {
    const int64_t first = i * each + (i < more ? i : more);
    const int64_t last = first + each + (i < more ? 1 : 0);
    thrown.guard([&] { body(first, last, static_cast<int>(i)); });
  };
#if defined(_OPENMP)
  // A loop rather than the team's own numbers: the team may be smaller than asked for.
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(shares))
  for (int64_t i = 0; i < shares; ++i) share(i);
#else
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(shares - 1));
  for (int64_t i = 1; i < shares; ++i) others.emplace_back(share, i);
  share(0);
  for (std::thread& other : others) other.join();
#endif
  thrown.rethrow();
}

}  // namespace obverse
