#define OBVERSE_ISA_NS isa_avx2
#include "descent_kernels.inc"

namespace obverse {
const DescentKernels kDescentAvx2 = isa_avx2::kTable;
}  // namespace obverse
