/* The vector names for plain C: one lane. The oracle that every other instruction set is compared
   with, and what runs on a CPU that has none of them. No fused multiply-add is asked for (fma() is
   a slow call where the CPU lacks it), so its sums round once more than the others'. */
#include <math.h>
#include <string.h>
#define NREG 16
#define VPLAIN 2
#define VNARROW 0 /* no narrow tiles */
#define NEAR 1 /* rows of a tile reached from one pointer */
#define FAR_APART SIZE_MAX /* bytes between rows that a weight gradient copies: none */
typedef real vec;
#define VW 1

#if FR_BITS == 32
typedef uint32_t bits_t;
#define FR_MANTISSA 23
#define FR_FN(name) name##f
#else
typedef uint64_t bits_t;
#define FR_MANTISSA 52
#define FR_FN(name) name
#endif

FR_INLINE vec vload(const real *p) { return *p; }
FR_INLINE void vstore(real *p, vec a) { *p = a; }
FR_INLINE vec vloadn(const real *p, ptrdiff_t n) { return n > 0 ? *p : 0; }
FR_INLINE void vstoren(real *p, vec a, ptrdiff_t n) {
  if (n > 0) *p = a;
}
FR_INLINE vec vset1(real x) { return x; }
FR_INLINE vec vadd(vec a, vec b) { return a + b; }
FR_INLINE vec vsub(vec a, vec b) { return a - b; }
FR_INLINE vec vmul(vec a, vec b) { return a * b; }
FR_INLINE vec vdiv(vec a, vec b) { return a / b; }
FR_INLINE vec vsqrt(vec a) { return FR_FN(sqrt)(a); }
FR_INLINE vec vfma(vec a, vec b, vec c) { return a * b + c; }
FR_INLINE vec vfnma(vec a, vec b, vec c) { return c - a * b; }
FR_INLINE vec vifless(vec a, vec b, vec x, vec y) { return a < b ? x : y; }
FR_INLINE vec vifle(vec a, vec b, vec x, vec y) { return a <= b ? x : y; }
FR_INLINE void vsettle(vec *a) { (void)a; }
FR_INLINE void vadd_product(vec *sum, vec a, vec b) { *sum = vfma(a, b, *sum); }
FR_INLINE vec vmin(vec a, vec b) { return a < b ? a : b; }
FR_INLINE vec vmax(vec a, vec b) { return b < a ? a : b; }
FR_INLINE vec vabs(vec a) { return FR_FN(fabs)(a); }
FR_INLINE vec vcopysign(vec a, vec s) { return FR_FN(copysign)(a, s); }
FR_INLINE bits_t vbits(vec a) {
  bits_t b;
  memcpy(&b, &a, sizeof b);
  return b;
}
FR_INLINE vec vof_bits(bits_t b) {
  vec a;
  memcpy(&a, &b, sizeof a);
  return a;
}
FR_INLINE vec vzip_low(vec a, vec b) { (void)b; return a; } /* never called: one lane has no pairs */
FR_INLINE vec vzip_high(vec a, vec b) { (void)a; return b; }
FR_INLINE vec vguess(vec d) { return 1 / d; } /* Newton's steps need a fused residual */
FR_INLINE vec vshl(vec a) { return vof_bits(vbits(a) << FR_MANTISSA); }
FR_INLINE vec vshr(vec a) { return vof_bits(vbits(a) >> FR_MANTISSA); }
FR_INLINE vec vlow(vec a) { return vof_bits(vbits(a) << 16); }
FR_INLINE vec vadd_bits(vec a, vec b) { return vof_bits(vbits(a) + vbits(b)); }
FR_INLINE vec vsub_bits(vec a, vec b) { return vof_bits(vbits(a) - vbits(b)); }
