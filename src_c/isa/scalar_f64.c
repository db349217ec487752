#define FR_BITS 64
#include "scalar.c"
