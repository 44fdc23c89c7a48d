#define OBVERSE_ISA_NS isa_avx2
#define OBVERSE_VECTOR_TABLE kVectorKernelsAvx2
#include "quantised_kernels.inc"
