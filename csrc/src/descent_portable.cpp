#define OBVERSE_ISA_NS isa_portable
#include "descent_kernels.inc"

namespace obverse {
const DescentKernels kDescentPortable = isa_portable::kTable;
}  // namespace obverse
