/* The templates for avx2; float32, and float64 through avx2_f64.c. */
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#ifndef FR_BITS
#define FR_BITS 32
#endif
#define FR_ISA avx2
#include "../step.h"
#include "../vec/avx2.h"
#include "../tmpl/table.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
