// Which instruction set runs here: asked once of the processor, and of the operating system for its registers.
#include "ce_kernels.hpp"
#include "obverse/weighted_ce.hpp"

#if defined(OBVERSE_X86_64)
#include <cpuid.h>
#endif

namespace obverse {

#if defined(OBVERSE_X86_64)
namespace {

// Not every compiler's __builtin_cpu_supports knows these two; their registers are those of avx2 and avx512f.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1U) != 0;
}
bool has_avx512bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1U) != 0;
}

}  // namespace
#endif

Isa best_isa() {
#if defined(OBVERSE_X86_64)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return Isa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::kAvx2;
  return has_avx512bf16() ? Isa::kAvx512Bf16 : Isa::kAvx512;
#else
  return Isa::kPortable;
#endif
}

const CeKernels& ce_kernels(Isa bound) {
#if defined(OBVERSE_X86_64)
  const Isa best = best_isa();
  switch (bound < best ? bound : best) {
    case Isa::kAvx512Bf16:
      return kCeKernelsAvx512Bf16;
    case Isa::kAvx512:
      return kCeKernelsAvx512;
    case Isa::kAvx2:
      return kCeKernelsAvx2;
    default:
      return kCeKernelsPortable;
  }
#else
  static_cast<void>(bound);
  return kCeKernelsPortable;
#endif
}

}  // namespace obverse
