// Scratch memory of the kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace obverse {

/// Memory that nobody has written yet. What is large comes from the system, on huge pages where it has them: a
/// heap would keep it in pieces between calls.
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t bytes) : bytes_(static_cast<size_t>(std::max<int64_t>(bytes, 0)) + kAlignment) {
#if defined(__linux__)
    if (bytes_ >= 2 * kHuge) {
      bytes_ += kHuge;
      void* const all = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (all == MAP_FAILED) throw std::bad_alloc();
      mapped_.reset(all, [size = bytes_](void* data) { munmap(data, size); });
      data_ = aligned(all, kHuge);
      madvise(data_, bytes_ - kHuge, MADV_HUGEPAGE);  // a hint: it may fail
      return;
    }
#endif
    mapped_.reset(::operator new(bytes_), [](void* data) { ::operator delete(data); });
    data_ = aligned(mapped_.get(), kAlignment);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  static constexpr size_t kHuge = size_t{1} << 21, kAlignment = 64;
  static void* aligned(void* data, size_t alignment) {
    const auto at = reinterpret_cast<uintptr_t>(data);
    return static_cast<char*>(data) + ((alignment - at % alignment) % alignment);
  }
  size_t bytes_ = 0;
  std::shared_ptr<void> mapped_;
  void* data_ = nullptr;
};

}  // namespace obverse
