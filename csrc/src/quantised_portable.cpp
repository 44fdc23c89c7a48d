#define OBVERSE_ISA_NS isa_portable
#define OBVERSE_VECTOR_TABLE kVectorKernelsPortable
#include "quantised_kernels.inc"
