#define FR_BITS 64
#include "neon.c"
