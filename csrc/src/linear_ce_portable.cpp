#define OBVERSE_ISA_NS portable
#include "linear_ce_sweep.inc"

namespace obverse {
using namespace OBVERSE_ISA_NS;
const LinearCeTable kLinearCePortable = {linear_ce_kernels<LinearCeTypes<float, false>>(),
                                         linear_ce_kernels<LinearCeTypes<bf16, false>>()};
}  // namespace obverse
