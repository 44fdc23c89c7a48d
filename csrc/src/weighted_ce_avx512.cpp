#define OBVERSE_ISA_NS isa_avx512
#define OBVERSE_CE_TABLE kCeKernelsAvx512
#include "weighted_ce_kernels.inc"
