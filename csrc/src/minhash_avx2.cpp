#define OBVERSE_TAKE_MINIMA take_minima_avx2
#include "minhash_kernels.inc"
