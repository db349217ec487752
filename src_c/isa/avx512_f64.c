#define FR_BITS 64
#include "avx512.c"
