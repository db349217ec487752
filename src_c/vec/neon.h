/* The vector names for AArch64 Advanced SIMD: 128 bits, 32 registers. Contract: ../README.md. */
#include <arm_neon.h>
#include <string.h>
#define NREG 32
#define VPLAIN 4 /* vectors per panel of a plain (one-gate) product: 6 rows x 4 vectors */
#define VNARROW 2
#define NEAR 1 /* rows of a tile reached from one pointer */
#define FAR_APART SIZE_MAX /* bytes between rows that a weight gradient copies: none */

#if FR_BITS == 32
typedef float32x4_t vec;
#define VW 4
FR_INLINE vec vload(const real *p) { return vld1q_f32(p); }
FR_INLINE void vstore(real *p, vec a) { vst1q_f32(p, a); }
FR_INLINE vec vset1(real x) { return vdupq_n_f32(x); }
FR_INLINE vec vadd(vec a, vec b) { return vaddq_f32(a, b); }
FR_INLINE vec vsub(vec a, vec b) { return vsubq_f32(a, b); }
FR_INLINE vec vmul(vec a, vec b) { return vmulq_f32(a, b); }
FR_INLINE vec vdiv(vec a, vec b) { return vdivq_f32(a, b); }
FR_INLINE vec vsqrt(vec a) { return vsqrtq_f32(a); }
FR_INLINE vec vfma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
FR_INLINE vec vfnma(vec a, vec b, vec c) { return vfmsq_f32(c, a, b); }
FR_INLINE vec vifless(vec a, vec b, vec x, vec y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
FR_INLINE vec vifle(vec a, vec b, vec x, vec y) { return vbslq_f32(vcleq_f32(a, b), x, y); }
FR_INLINE vec vabs(vec a) { return vabsq_f32(a); }
FR_INLINE vec vcopysign(vec a, vec s) { return vbslq_f32(vdupq_n_u32(0x80000000u), s, a); }
FR_INLINE vec vlow(vec a) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 16));
}
FR_INLINE vec vshl(vec a) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 23));
}
FR_INLINE vec vshr(vec a) {
  return vreinterpretq_f32_u32(vshrq_n_u32(vreinterpretq_u32_f32(a), 23));
}
FR_INLINE vec vadd_bits(vec a, vec b) {
  return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b)));
}
FR_INLINE vec vsub_bits(vec a, vec b) {
  return vreinterpretq_f32_u32(vsubq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b)));
}
FR_INLINE vec vzip_low(vec a, vec b) { return vzip1q_f32(a, b); }
FR_INLINE vec vzip_high(vec a, vec b) { return vzip2q_f32(a, b); }
FR_INLINE vec vguess(vec d) {
  return vreinterpretq_f32_u32(vsubq_u32(vdupq_n_u32(FR_RECIPROCAL), vreinterpretq_u32_f32(d)));
}
#else
typedef float64x2_t vec;
#define VW 2
FR_INLINE vec vload(const real *p) { return vld1q_f64(p); }
FR_INLINE void vstore(real *p, vec a) { vst1q_f64(p, a); }
FR_INLINE vec vset1(real x) { return vdupq_n_f64(x); }
FR_INLINE vec vadd(vec a, vec b) { return vaddq_f64(a, b); }
FR_INLINE vec vsub(vec a, vec b) { return vsubq_f64(a, b); }
FR_INLINE vec vmul(vec a, vec b) { return vmulq_f64(a, b); }
FR_INLINE vec vdiv(vec a, vec b) { return vdivq_f64(a, b); }
FR_INLINE vec vsqrt(vec a) { return vsqrtq_f64(a); }
FR_INLINE vec vfma(vec a, vec b, vec c) { return vfmaq_f64(c, a, b); }
FR_INLINE vec vfnma(vec a, vec b, vec c) { return vfmsq_f64(c, a, b); }
FR_INLINE vec vifless(vec a, vec b, vec x, vec y) { return vbslq_f64(vcltq_f64(a, b), x, y); }
FR_INLINE vec vifle(vec a, vec b, vec x, vec y) { return vbslq_f64(vcleq_f64(a, b), x, y); }
FR_INLINE vec vabs(vec a) { return vabsq_f64(a); }
FR_INLINE vec vcopysign(vec a, vec s) { return vbslq_f64(vdupq_n_u64(1ull << 63), s, a); }
FR_INLINE vec vshl(vec a) {
  return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(a), 52));
}
FR_INLINE vec vshr(vec a) {
  return vreinterpretq_f64_u64(vshrq_n_u64(vreinterpretq_u64_f64(a), 52));
}
FR_INLINE vec vadd_bits(vec a, vec b) {
  return vreinterpretq_f64_u64(vaddq_u64(vreinterpretq_u64_f64(a), vreinterpretq_u64_f64(b)));
}
FR_INLINE vec vsub_bits(vec a, vec b) {
  return vreinterpretq_f64_u64(vsubq_u64(vreinterpretq_u64_f64(a), vreinterpretq_u64_f64(b)));
}
FR_INLINE vec vzip_low(vec a, vec b) { return vzip1q_f64(a, b); }
FR_INLINE vec vzip_high(vec a, vec b) { return vzip2q_f64(a, b); }
FR_INLINE vec vguess(vec d) {
  return vreinterpretq_f64_u64(vsubq_u64(vdupq_n_u64(FR_RECIPROCAL), vreinterpretq_u64_f64(d)));
}
#endif

FR_INLINE void vsettle(vec *a) { __asm__ volatile("" : "+w"(*a)); }
FR_INLINE void vadd_product(vec *sum, vec a, vec b) { *sum = vfma(a, b, *sum); }
FR_INLINE vec vmin(vec a, vec b) { return vifless(a, b, a, b); }
FR_INLINE vec vmax(vec a, vec b) { return vifless(b, a, a, b); }
/* No masked access here: the part goes through the stack. */
FR_INLINE vec vloadn(const real *p, ptrdiff_t n) {
  real part[VW] = {0};
  memcpy(part, p, (size_t)n * sizeof(real));
  return vload(part);
}
FR_INLINE void vstoren(real *p, vec a, ptrdiff_t n) {
  real part[VW];
  vstore(part, a);
  memcpy(p, part, (size_t)n * sizeof(real));
}
