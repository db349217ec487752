/* The vector names for AVX2 + FMA: 256 bits, 16 registers. Contract: vec/README in ../README.md. */
#include <immintrin.h>
#define NREG 16
#define VPLAIN 2 /* vectors per panel of a plain (one-gate) product: 6 rows x 2 vectors */
#define VNARROW 1
#define NEAR 3 /* rows of a tile reached from one pointer: p, p + s, p + 2s */
#define FAR_APART 1024 /* bytes between rows that a weight gradient copies; measured */

#if FR_BITS == 32
typedef __m256 vec;
#define VW 8
FR_INLINE vec vload(const real *p) { return _mm256_loadu_ps(p); }
FR_INLINE void vstore(real *p, vec a) { _mm256_storeu_ps(p, a); }
FR_INLINE __m256i vmask(ptrdiff_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}
FR_INLINE vec vloadn(const real *p, ptrdiff_t n) { return _mm256_maskload_ps(p, vmask(n)); }
FR_INLINE void vstoren(real *p, vec a, ptrdiff_t n) { _mm256_maskstore_ps(p, vmask(n), a); }
FR_INLINE vec vset1(real x) { return _mm256_set1_ps(x); }
FR_INLINE vec vadd(vec a, vec b) { return _mm256_add_ps(a, b); }
FR_INLINE vec vsub(vec a, vec b) { return _mm256_sub_ps(a, b); }
FR_INLINE vec vmul(vec a, vec b) { return _mm256_mul_ps(a, b); }
FR_INLINE vec vdiv(vec a, vec b) { return _mm256_div_ps(a, b); }
FR_INLINE vec vsqrt(vec a) { return _mm256_sqrt_ps(a); }
FR_INLINE vec vfma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
FR_INLINE void vsettle(vec *a) { __asm__ volatile("" : "+x"(*a)); }
FR_INLINE void vadd_product(vec *sum, vec a, vec b) {
  __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(a), "x"(b));
}
FR_INLINE vec vfnma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
FR_INLINE vec vmin(vec a, vec b) { return _mm256_min_ps(a, b); }
FR_INLINE vec vmax(vec a, vec b) { return _mm256_max_ps(a, b); }
FR_INLINE vec vabs(vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
FR_INLINE vec vcopysign(vec a, vec s) {
  const vec sign = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, s));
}
FR_INLINE vec vifless(vec a, vec b, vec x, vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
FR_INLINE vec vifle(vec a, vec b, vec x, vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LE_OQ));
}
FR_INLINE vec vlow(vec a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16));
}
FR_INLINE vec vshl(vec a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}
FR_INLINE vec vshr(vec a) {
  return _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(a), 23));
}
FR_INLINE vec vadd_bits(vec a, vec b) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
FR_INLINE vec vsub_bits(vec a, vec b) {
  return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
FR_INLINE vec vzip_low(vec a, vec b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
FR_INLINE vec vzip_high(vec a, vec b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
FR_INLINE vec vguess(vec d) {
  const __m256i r = _mm256_set1_epi32(FR_RECIPROCAL);
  return _mm256_castsi256_ps(_mm256_sub_epi32(r, _mm256_castps_si256(d)));
}
#else
typedef __m256d vec;
#define VW 4
FR_INLINE vec vload(const real *p) { return _mm256_loadu_pd(p); }
FR_INLINE void vstore(real *p, vec a) { _mm256_storeu_pd(p, a); }
FR_INLINE __m256i vmask(ptrdiff_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
FR_INLINE vec vloadn(const real *p, ptrdiff_t n) { return _mm256_maskload_pd(p, vmask(n)); }
FR_INLINE void vstoren(real *p, vec a, ptrdiff_t n) { _mm256_maskstore_pd(p, vmask(n), a); }
FR_INLINE vec vset1(real x) { return _mm256_set1_pd(x); }
FR_INLINE vec vadd(vec a, vec b) { return _mm256_add_pd(a, b); }
FR_INLINE vec vsub(vec a, vec b) { return _mm256_sub_pd(a, b); }
FR_INLINE vec vmul(vec a, vec b) { return _mm256_mul_pd(a, b); }
FR_INLINE vec vdiv(vec a, vec b) { return _mm256_div_pd(a, b); }
FR_INLINE vec vsqrt(vec a) { return _mm256_sqrt_pd(a); }
FR_INLINE vec vfma(vec a, vec b, vec c) { return _mm256_fmadd_pd(a, b, c); }
FR_INLINE void vsettle(vec *a) { __asm__ volatile("" : "+x"(*a)); }
FR_INLINE void vadd_product(vec *sum, vec a, vec b) {
  __asm__ volatile("vfmadd231pd %2, %1, %0" : "+x"(*sum) : "x"(a), "x"(b));
}
FR_INLINE vec vfnma(vec a, vec b, vec c) { return _mm256_fnmadd_pd(a, b, c); }
FR_INLINE vec vmin(vec a, vec b) { return _mm256_min_pd(a, b); }
FR_INLINE vec vmax(vec a, vec b) { return _mm256_max_pd(a, b); }
FR_INLINE vec vabs(vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
FR_INLINE vec vcopysign(vec a, vec s) {
  const vec sign = _mm256_set1_pd(-0.0);
  return _mm256_or_pd(_mm256_andnot_pd(sign, a), _mm256_and_pd(sign, s));
}
FR_INLINE vec vifless(vec a, vec b, vec x, vec y) {
  return _mm256_blendv_pd(y, x, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}
FR_INLINE vec vifle(vec a, vec b, vec x, vec y) {
  return _mm256_blendv_pd(y, x, _mm256_cmp_pd(a, b, _CMP_LE_OQ));
}
FR_INLINE vec vshl(vec a) {
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(a), 52));
}
FR_INLINE vec vshr(vec a) {
  return _mm256_castsi256_pd(_mm256_srli_epi64(_mm256_castpd_si256(a), 52));
}
FR_INLINE vec vadd_bits(vec a, vec b) {
  return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), _mm256_castpd_si256(b)));
}
FR_INLINE vec vsub_bits(vec a, vec b) {
  return _mm256_castsi256_pd(_mm256_sub_epi64(_mm256_castpd_si256(a), _mm256_castpd_si256(b)));
}
FR_INLINE vec vzip_low(vec a, vec b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
}
FR_INLINE vec vzip_high(vec a, vec b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
}
FR_INLINE vec vguess(vec d) {
  const __m256i r = _mm256_set1_epi64x(FR_RECIPROCAL);
  return _mm256_castsi256_pd(_mm256_sub_epi64(r, _mm256_castpd_si256(d)));
}
#endif
