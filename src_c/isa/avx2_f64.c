#define FR_BITS 64
#include "avx2.c"
