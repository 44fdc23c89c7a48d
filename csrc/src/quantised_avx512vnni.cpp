#define OBVERSE_ISA_NS isa_avx512vnni
#define OBVERSE_VECTOR_TABLE kVectorKernelsAvx512Vnni
#include "quantised_kernels.inc"
