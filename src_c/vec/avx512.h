/* The vector names for AVX-512 (F and DQ): 512 bits, 32 registers. Contract: ../README.md. */
#include <immintrin.h>
#define NREG 32
#define VPLAIN 2 /* vectors per panel of a plain (one-gate) product: 12 rows x 2 vectors */
#define VNARROW 1
#define VMASKS /* vfma_within is here */
#define NEAR 3 /* rows of a tile reached from one pointer: p, p + s, p + 2s */
#define FAR_APART SIZE_MAX /* bytes between rows that a weight gradient copies: none */

#if FR_BITS == 32
typedef __m512 vec;
#define VW 16
FR_INLINE vec vload(const real *p) { return _mm512_loadu_ps(p); }
FR_INLINE void vstore(real *p, vec a) { _mm512_storeu_ps(p, a); }
FR_INLINE __mmask16 vmask(ptrdiff_t n) { return (__mmask16)((1u << n) - 1); }
FR_INLINE vec vloadn(const real *p, ptrdiff_t n) { return _mm512_maskz_loadu_ps(vmask(n), p); }
FR_INLINE void vstoren(real *p, vec a, ptrdiff_t n) { _mm512_mask_storeu_ps(p, vmask(n), a); }
FR_INLINE vec vset1(real x) { return _mm512_set1_ps(x); }
FR_INLINE vec vadd(vec a, vec b) { return _mm512_add_ps(a, b); }
FR_INLINE vec vsub(vec a, vec b) { return _mm512_sub_ps(a, b); }
FR_INLINE vec vmul(vec a, vec b) { return _mm512_mul_ps(a, b); }
FR_INLINE vec vdiv(vec a, vec b) { return _mm512_div_ps(a, b); }
FR_INLINE vec vsqrt(vec a) { return _mm512_sqrt_ps(a); }
FR_INLINE vec vfma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
FR_INLINE void vsettle(vec *a) { __asm__ volatile("" : "+v"(*a)); }
FR_INLINE void vadd_product(vec *sum, vec a, vec b) {
  __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
FR_INLINE vec vfnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
FR_INLINE vec vmin(vec a, vec b) { return _mm512_min_ps(a, b); }
FR_INLINE vec vmax(vec a, vec b) { return _mm512_max_ps(a, b); }
FR_INLINE vec vabs(vec a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
FR_INLINE vec vcopysign(vec a, vec s) {
  const vec sign = _mm512_set1_ps(-0.0f);
  return _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, s));
}
FR_INLINE vec vifless(vec a, vec b, vec x, vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
FR_INLINE vec vifle(vec a, vec b, vec x, vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), y, x);
}
FR_INLINE vec vfma_within(vec x, vec low, vec high, vec a, vec b, vec c) {
  const __mmask16 fits = _mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ);
  return _mm512_mask3_fmadd_ps(a, b, c, _mm512_mask_cmp_ps_mask(fits, x, high, _CMP_NGT_UQ));
}
FR_INLINE vec vlow(vec a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16));
}
FR_INLINE vec vshl(vec a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}
FR_INLINE vec vshr(vec a) {
  return _mm512_castsi512_ps(_mm512_srli_epi32(_mm512_castps_si512(a), 23));
}
FR_INLINE vec vadd_bits(vec a, vec b) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
FR_INLINE vec vsub_bits(vec a, vec b) {
  return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
FR_INLINE vec vzip_low(vec a, vec b) {
  const __m512i at = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_ps(a, at, b);
}
FR_INLINE vec vzip_high(vec a, vec b) {
  const __m512i at = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return _mm512_permutex2var_ps(a, at, b);
}
FR_INLINE vec vguess(vec d) {
  const __m512i r = _mm512_set1_epi32(FR_RECIPROCAL);
  return _mm512_castsi512_ps(_mm512_sub_epi32(r, _mm512_castps_si512(d)));
}
#else
typedef __m512d vec;
#define VW 8
FR_INLINE vec vload(const real *p) { return _mm512_loadu_pd(p); }
FR_INLINE void vstore(real *p, vec a) { _mm512_storeu_pd(p, a); }
FR_INLINE __mmask8 vmask(ptrdiff_t n) { return (__mmask8)((1u << n) - 1); }
FR_INLINE vec vloadn(const real *p, ptrdiff_t n) { return _mm512_maskz_loadu_pd(vmask(n), p); }
FR_INLINE void vstoren(real *p, vec a, ptrdiff_t n) { _mm512_mask_storeu_pd(p, vmask(n), a); }
FR_INLINE vec vset1(real x) { return _mm512_set1_pd(x); }
FR_INLINE vec vadd(vec a, vec b) { return _mm512_add_pd(a, b); }
FR_INLINE vec vsub(vec a, vec b) { return _mm512_sub_pd(a, b); }
FR_INLINE vec vmul(vec a, vec b) { return _mm512_mul_pd(a, b); }
FR_INLINE vec vdiv(vec a, vec b) { return _mm512_div_pd(a, b); }
FR_INLINE vec vsqrt(vec a) { return _mm512_sqrt_pd(a); }
FR_INLINE vec vfma(vec a, vec b, vec c) { return _mm512_fmadd_pd(a, b, c); }
FR_INLINE void vsettle(vec *a) { __asm__ volatile("" : "+v"(*a)); }
FR_INLINE void vadd_product(vec *sum, vec a, vec b) {
  __asm__ volatile("vfmadd231pd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
FR_INLINE vec vfnma(vec a, vec b, vec c) { return _mm512_fnmadd_pd(a, b, c); }
FR_INLINE vec vmin(vec a, vec b) { return _mm512_min_pd(a, b); }
FR_INLINE vec vmax(vec a, vec b) { return _mm512_max_pd(a, b); }
FR_INLINE vec vabs(vec a) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a); }
FR_INLINE vec vcopysign(vec a, vec s) {
  const vec sign = _mm512_set1_pd(-0.0);
  return _mm512_or_pd(_mm512_andnot_pd(sign, a), _mm512_and_pd(sign, s));
}
FR_INLINE vec vifless(vec a, vec b, vec x, vec y) {
  return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), y, x);
}
FR_INLINE vec vifle(vec a, vec b, vec x, vec y) {
  return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LE_OQ), y, x);
}
FR_INLINE vec vfma_within(vec x, vec low, vec high, vec a, vec b, vec c) {
  const __mmask8 fits = _mm512_cmp_pd_mask(x, low, _CMP_NLT_UQ);
  return _mm512_mask3_fmadd_pd(a, b, c, _mm512_mask_cmp_pd_mask(fits, x, high, _CMP_NGT_UQ));
}
FR_INLINE vec vshl(vec a) {
  return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(a), 52));
}
FR_INLINE vec vshr(vec a) {
  return _mm512_castsi512_pd(_mm512_srli_epi64(_mm512_castpd_si512(a), 52));
}
FR_INLINE vec vadd_bits(vec a, vec b) {
  return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a), _mm512_castpd_si512(b)));
}
FR_INLINE vec vsub_bits(vec a, vec b) {
  return _mm512_castsi512_pd(_mm512_sub_epi64(_mm512_castpd_si512(a), _mm512_castpd_si512(b)));
}
FR_INLINE vec vzip_low(vec a, vec b) {
  return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b);
}
FR_INLINE vec vzip_high(vec a, vec b) {
  return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
}
FR_INLINE vec vguess(vec d) {
  const __m512i r = _mm512_set1_epi64(FR_RECIPROCAL);
  return _mm512_castsi512_pd(_mm512_sub_epi64(r, _mm512_castpd_si512(d)));
}
#endif
