/* The templates for neon; float32, and float64 through neon_f64.c. */
#if defined(__aarch64__)
#ifndef FR_BITS
#define FR_BITS 32
#endif
#define FR_ISA neon
#include "../step.h"
#include "../vec/neon.h"
#include "../tmpl/table.h"
#endif
