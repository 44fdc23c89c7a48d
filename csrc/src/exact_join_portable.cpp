#define OBVERSE_ISA_NS isa_portable
#define OBVERSE_JOIN_TABLE kJoinKernelsPortable
#include "exact_join_kernels.inc"
