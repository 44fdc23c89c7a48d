#define OBVERSE_ISA_NS isa_avx2
#define OBVERSE_JOIN_TABLE kJoinKernelsAvx2
#include "exact_join_kernels.inc"
