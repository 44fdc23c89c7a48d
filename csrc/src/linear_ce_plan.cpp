#include "linear_ce_plan.hpp"

#include <algorithm>

#if defined(OBVERSE_X86_64)
#include <cpuid.h>
#endif

namespace obverse {
namespace {

bool has_amx() {
#if defined(OBVERSE_X86_64)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 1U) != 0 && (d >> 22 & 1U) != 0;
#else
  return false;
#endif
}

const LinearCeKernels& kernels_for(CeDtype dtype, Isa bound) {
#if defined(OBVERSE_X86_64)
  const Isa isa = std::min(bound, best_isa());
  if (isa == Isa::kAvx512Bf16 && dtype == CeDtype::kBfloat16) return kLinearCeAvx512Bf16;
  const LinearCeTable& table = isa >= Isa::kAvx512 ? kLinearCeAvx512
                               : isa == Isa::kAvx2 ? kLinearCeAvx2
                                                   : kLinearCePortable;
#else
  static_cast<void>(bound);
  const LinearCeTable& table = kLinearCePortable;
#endif
  return dtype == CeDtype::kBfloat16 ? table.of_bfloat16 : table.of_float32;
}

/// Rows of a chunk: as many as keep the memory at a quarter of what all logits would take, eight MiB at least.
int64_t rows_a_chunk(const LinearCeCall& call, const LinearCePlan& plan, int64_t counted) {
  const int64_t panel = plan.kernels.panel, least = ceil_div(96, panel) * panel;
  if (counted == 0) return panel;
  if (call.problem.rows_a_chunk > 0)
    return ceil_div(std::min(call.problem.rows_a_chunk, counted), panel) * panel;
  if (!plan.train) return ceil_div(std::min<int64_t>(counted, 960), panel) * panel;
  const int64_t low =
      call.bfloat16() && call.gradients.head != nullptr ? ceil_div(call.vocab(), 2) * call.depth() : 0;
  const int64_t kept = plan.blocks * (plan.block * plan.kept_bytes + 4);  // a row's
  int64_t rows = counted;
  const int64_t budget = std::max(call.n() * call.vocab() * call.element() / 4, int64_t{8} << 20);
  // One chunk, where all rows at once take less than the bits that a gradient of many chunks keeps.
  if (low == 0 || counted * kept > std::max(low, budget)) {
    const int64_t own = 4 * plan.threads * (plan.packed(plan.block) + plan.block * panel);
    const int64_t wide = plan.deep_panels * panel, halves = plan.kernels.pairs ? 2 : 1;
    const int64_t own_row = 4 * wide + (plan.kernels.pairs ? 2 * plan.block : 0);
    const int64_t a_row = kept + 4 * (plan.deep + wide / halves) + plan.threads * own_row + 128;
    rows = std::min<int64_t>(2048, std::max<int64_t>(0, budget - low - own) / a_row);
    rows = std::max(rows / panel * panel, least);
  }
  const int64_t chunks = std::max<int64_t>(1, ceil_div(counted, rows));
  return ceil_div(ceil_div(counted, chunks), panel) * panel;
}

}  // namespace

LinearCePlan make_linear_ce_plan(const LinearCeCall& call, const CeRun& run, int64_t counted) {
  LinearCePlan plan;
  plan.kernels = kernels_for(call.problem.hidden.dtype, run.isa);
  plan.threads = std::max(run.threads, 1);
  plan.train =
      call.gradients.hidden != nullptr || call.gradients.head != nullptr || call.gradients.bias != nullptr;
  plan.deep = plan.cells(call.depth());
  plan.deep_panels = ceil_div(call.depth(), plan.kernels.panel);
  plan.kept_bytes = plan.kernels.pairs ? 2 : 4;
  const int64_t step = plan.kernels.tile + plan.kernels.tile % 2;
  // A block of the head, in cells, takes a third of a second-level cache; every thread has as many blocks.
  const int64_t fits = int64_t{393216} / (4 * std::max<int64_t>(plan.deep, 1)) / step * step;
  const int64_t most = std::max(std::min(fits, int64_t{256} / step * step), step);
  const int64_t blocks = ceil_div(ceil_div(call.vocab(), most), plan.threads) * plan.threads;
  plan.block = ceil_div(ceil_div(call.vocab(), std::max<int64_t>(blocks, 1)), step) * step;
  plan.block = std::max(plan.block, step);
  plan.blocks = ceil_div(call.vocab(), plan.block);
  plan.rows = rows_a_chunk(call, plan, counted);
  return plan;
}

bool linear_ce_is_fast(CeDtype dtype, Isa isa) {
  const Isa here = std::min(isa, best_isa());
  if (dtype == CeDtype::kFloat32) return here >= Isa::kAvx2;
  // Where there are AMX tiles, a library's products are faster than AVX-512's.
  return dtype == CeDtype::kBfloat16 && here == Isa::kAvx512Bf16 && !has_amx();
}

}  // namespace obverse
