#define OBVERSE_ISA_NS isa_avx512bf16
#define OBVERSE_CE_TABLE kCeKernelsAvx512Bf16
#include "weighted_ce_kernels.inc"
