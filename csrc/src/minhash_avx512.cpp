#define OBVERSE_TAKE_MINIMA take_minima_avx512
#include "minhash_kernels.inc"
