#define OBVERSE_ISA_NS isa_portable
#define OBVERSE_CE_TABLE kCeKernelsPortable
#include "weighted_ce_kernels.inc"
