#define OBVERSE_TAKE_MINIMA take_minima_portable
#include "minhash_kernels.inc"
