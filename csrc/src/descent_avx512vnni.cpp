#define OBVERSE_ISA_NS isa_avx512vnni
#include "descent_kernels.inc"

namespace obverse {
const DescentKernels kDescentAvx512Vnni = isa_avx512vnni::kTable;
}  // namespace obverse
