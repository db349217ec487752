/* What every template starts from. A file of isa/ defines FR_BITS, FR_ISA and the target, includes
 * this, its vec/ header, and tmpl/table.h. */
#ifndef FR_STEP_H
#define FR_STEP_H
#include "fastrnn.h"
#include <assert.h>
#include <string.h>

#define FR_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define FR_ONE_COPY __attribute__((noinline))
#else
#define FR_ONE_COPY __attribute__((noinline, noclone))
#endif
#define FR_PRAGMA(text) _Pragma(#text)
#if defined(FR_ROLLED) /* under sanitizers: unrolled checks take a quarter of an hour to compile */
#define FR_UNROLL(n)
#elif defined(__clang__)
#define FR_UNROLL(n) FR_PRAGMA(clang loop unroll(full))
#else
#define FR_UNROLL(n) FR_PRAGMA(GCC unroll n)
#endif

#if defined(FR_NO_PREFETCH) /* a switch for tests */
#define FR_FETCH(address, write, level) (void)(address)
#else
#define FR_FETCH(address, write, level) __builtin_prefetch(address, write, level)
#endif

#define FR_PASTE3(a, b, c) a##_##b##c
#define FR_PASTE(a, b, c) FR_PASTE3(a, b, c)
#define FR_STRING2(a) #a
#define FR_STRING(a) FR_STRING2(a)

/* FR_RECIPROCAL minus the bits of d, as a float: 1/d within 5.06% for d > 0 (of the numbers of this
 * kind, the one whose errors to both sides are alike). */
#if FR_BITS == 32
typedef float real;
#define FR_RECIPROCAL 0x7EF311C7
#else
typedef double real;
#define FR_RECIPROCAL 0x7FDE6238502484BA
#endif

/* Row r of a matrix of rows. */
FR_INLINE real *fr_row(const fr_rows *m, ptrdiff_t r) {
  real *base = (real *)m->base;
  if (m->at) return base + m->at[r] * m->inner;
  return base + (r / m->count) * m->outer + (r % m->count) * m->inner;
}
#endif
