/* The templates for avx512; float32, and float64 through avx512_f64.c. */
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,fma")
#endif
#ifndef FR_BITS
#define FR_BITS 32
#endif
#define FR_ISA avx512
#include "../step.h"
#include "../vec/avx512.h"
#include "../tmpl/table.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
