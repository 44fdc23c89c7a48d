#define OBVERSE_ISA_NS isa_avx2
#define OBVERSE_CE_TABLE kCeKernelsAvx2
#include "weighted_ce_kernels.inc"
