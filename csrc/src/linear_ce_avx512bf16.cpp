#define OBVERSE_ISA_NS avx512bf16
#include "linear_ce_sweep.inc"

namespace obverse {
using namespace OBVERSE_ISA_NS;
const LinearCeKernels kLinearCeAvx512Bf16 = linear_ce_kernels<LinearCeTypes<bf16, true>>();
}  // namespace obverse
