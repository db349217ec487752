/* Weight gradients: C += A^T B, a sum over all rows of all steps. */

/* C += A^T B with k over all rows. A block of FR_KC rows of B is packed into panels of GN columns,
 * and of A into slivers of GM columns; each tile's sum over the block starts at zero. Slivers and
 * panels lie 64 bytes more than their size apart: at a power of two they would share cache sets. */
#define GM TILE_ROWS(VPLAIN)
#define GMV ((GM + VW - 1) / VW) /* vectors of a row of a sliver */
enum { A_COLUMNS = 24 * 12, B_COLUMNS = 1024 }; /* per packed block: 288 and 1024 KB in float32 */
_Static_assert(A_COLUMNS % GM == 0 && B_COLUMNS % GN == 0, "whole slivers and whole panels");
#define APART (64 / (ptrdiff_t)sizeof(real))
#define SLIVER (FR_KC * GM + APART)
#define PANEL (FR_KC * GN + APART)
#define GRADIENT_SCRATCH \
  ((ptrdiff_t)sizeof(real) * (B_COLUMNS / GN * PANEL + A_COLUMNS / GM * SLIVER))

FR_INLINE void gradient_tile(const int M, const int NV, real *c, ptrdiff_t c_pitch, const real *a,
                             const real *b, ptrdiff_t k, ptrdiff_t columns, int fresh) {
  vec acc[MAX_ROWS][VPLAIN];
  /* C comes from afar, and is wanted only after the loop */
  FR_UNROLL(12) for (int m = 0; m < M; m++)
    for (int v = 0; v < NV * VW; v += 64 / (int)sizeof(real))
      if (v < columns) FR_FETCH(c + m * c_pitch + v, 1, 3);
  FR_UNROLL(12) for (int m = 0; m < M; m++)
    FR_UNROLL(4) for (int v = 0; v < NV; v++) acc[m][v] = vset1(0);
#define ONE_K(k)                                                                      \
  {                                                                                   \
    vec bv[VPLAIN];                                                                   \
    FR_UNROLL(4) for (int v = 0; v < NV; v++) bv[v] = vload(b + (k) * GN + v * VW); \
    FR_UNROLL(12) for (int m = 0; m < M; m++) {                                       \
      const vec am = vset1(a[(k) * GM + m]);                                          \
      FR_UNROLL(4) for (int v = 0; v < NV; v++) vadd_product(&acc[m][v], am, bv[v]); \
    }                                                                                 \
  }
  for (; k >= 4; k -= 4, a += 4 * GM, b += 4 * GN) {
    ONE_K(0) ONE_K(1) ONE_K(2) ONE_K(3)
  }
  for (; k > 0; k--, a += GM, b += GN) ONE_K(0)
#undef ONE_K
  FR_UNROLL(12) for (int m = 0; m < M; m++) {
    FR_UNROLL(4) for (int v = 0; v < NV; v++) {
      real *p = c + m * c_pitch + v * VW;
      const ptrdiff_t left = columns - v * VW;
      if (left >= VW)
        vstore(p, fresh ? acc[m][v] : vadd(vload(p), acc[m][v]));
      else if (left > 0)
        vstoren(p, fresh ? acc[m][v] : vadd(vloadn(p, left), acc[m][v]), left);
    }
  }
}

/* dst (slivers, k, GM) = columns [at, at + n) of the K rows; what is missing of the last sliver
 * stays undefined. Whole vectors are stored: what spills over a sliver's row is overwritten by the
 * next row. With `sums` (slivers, GMV) they are added up over the rows on the way. */
FR_INLINE void pack_slivers(const int summing, real *dst, vec *sums, const real *const *rows,
                            ptrdiff_t at, ptrdiff_t k, ptrdiff_t n) {
  for (ptrdiff_t i = 0; summing && i < (n + GM - 1) / GM * GMV; i++) sums[i] = vset1(0);
  for (ptrdiff_t i = 0; i < k; i++, dst += GM) {
    const real *src = rows[i] + at;
    real *d = dst;
    vec *sum = sums;
    for (ptrdiff_t u = 0; u < n; u += GM, d += SLIVER, sum += GMV)
      for (int v = 0; v < GMV; v++) {
        const ptrdiff_t left = n - u - v * VW;
        const vec a = left >= VW ? vload(src + u + v * VW) : left > 0 ? vloadn(src + u + v * VW, left) : vset1(0);
        vstore(d + v * VW, a);
        if (summing) sum[v] = vadd(sum[v], a);
      }
  }
}

/* dst (k, GN) = columns [0, columns) of the K rows, zeros beyond. */
FR_INLINE void pack_panel(real *dst, const real *const *rows, ptrdiff_t at, ptrdiff_t k,
                          ptrdiff_t columns) {
  for (ptrdiff_t i = 0; i < k; i++, dst += GN) {
    const real *src = rows[i] + at;
    FR_UNROLL(4) for (int v = 0; v < VPLAIN; v++) {
      const ptrdiff_t left = columns - v * VW;
      vstore(dst + v * VW, left >= VW ? vload(src + v * VW) : left > 0 ? vloadn(src + v * VW, left) : vset1(0));
    }
  }
}

static void gradient(const fr_gradient *s) {
  real *bp = (real *)s->scratch, *ap = bp + B_COLUMNS / GN * PANEL;
  const real *arow[FR_KC], *brow[FR_KC];
  vec sums[A_COLUMNS / GM * GMV];
  for (ptrdiff_t n0 = 0; n0 == 0 || n0 < s->n; n0 += B_COLUMNS) {
    const ptrdiff_t n = s->n - n0 < B_COLUMNS ? s->n - n0 : B_COLUMNS;
    for (ptrdiff_t k0 = 0; k0 < s->k || (k0 == 0 && s->fresh); k0 += FR_KC) {
      const ptrdiff_t k = s->k - k0 < FR_KC ? s->k - k0 : FR_KC;
      const int fresh = s->fresh && k0 == 0;
      for (ptrdiff_t i = 0; i < k; i++) {
        arow[i] = fr_row(&s->a, k0 + i);
        brow[i] = fr_row(&s->b, k0 + i);
      }
      for (ptrdiff_t i = 0; i < k; i++)
        for (ptrdiff_t j = 0; j < n; j += GN)
          pack_panel(bp + j / GN * PANEL + i * GN, brow + i, n0 + j, 1, n - j);
      for (int g = 0; g < s->gates; g++)
        for (ptrdiff_t u0 = s->u0; u0 < s->u1; u0 += A_COLUMNS) {
          const ptrdiff_t um = s->u1 - u0 < A_COLUMNS ? s->u1 - u0 : A_COLUMNS;
          if (n0 == 0 && s->bias) {
            real *bias = (real *)s->bias + g * s->h + u0;
            pack_slivers(1, ap, sums, arow, s->slot[g] + u0, k, um);
            for (ptrdiff_t u = 0; u < um; u += GM)
              for (int v = 0; v * VW < GM && u + v * VW < um; v++) {
                ptrdiff_t left = um - u < GM ? um - u : GM;
                left = left - v * VW < VW ? left - v * VW : VW;
                real *p = bias + u + v * VW;
                const vec sum = sums[u / GM * GMV + v];
                vstoren(p, fresh ? sum : vadd(vloadn(p, left), sum), left);
              }
          } else {
            pack_slivers(0, ap, sums, arow, s->slot[g] + u0, k, um);
          }
          real *c = (real *)s->c + (g * s->h + u0) * s->n + n0;
          for (ptrdiff_t j = 0; j < n; j += GN)
            for (ptrdiff_t u = 0; u < um; u += GM) {
              real *ct = c + u * s->n + j;
              const real *at = ap + u / GM * SLIVER, *bt = bp + j / GN * PANEL;
              const ptrdiff_t m = um - u < GM ? um - u : GM;
              switch (m) {
#define GRADIENT_CASE(M)                                                         \
  case M:                                                                        \
    if (M > GM) break;                                                           \
    if (n - j > VNARROW * VW)                                                    \
      gradient_tile(M, VPLAIN, ct, s->n, at, bt, k, n - j, fresh);               \
    else                                                                         \
      gradient_tile(M, VNARROW, ct, s->n, at, bt, k, n - j, fresh);              \
    break;
                GRADIENT_CASE(1) GRADIENT_CASE(2) GRADIENT_CASE(3) GRADIENT_CASE(4)
                GRADIENT_CASE(5) GRADIENT_CASE(6) GRADIENT_CASE(7) GRADIENT_CASE(8)
                GRADIENT_CASE(9) GRADIENT_CASE(10) GRADIENT_CASE(11) GRADIENT_CASE(12)
#undef GRADIENT_CASE
              }
            }
        }
    }
  }
}

/* Blocks of FR_KC rows, as above. Many columns at once: rows lie far apart. */
static void sum_rows(void *dst, const void *src, ptrdiff_t row, ptrdiff_t k, ptrdiff_t n) {
  enum { WIDE = 2048 / sizeof(real) };
  for (ptrdiff_t n0 = 0; n0 < n; n0 += WIDE) {
    const ptrdiff_t vectors = (n - n0 < WIDE ? n - n0 : WIDE) / VW;
    for (ptrdiff_t k0 = 0; k0 < k; k0 += FR_KC) {
      vec sum[WIDE / VW];
      for (ptrdiff_t v = 0; v < vectors; v++) sum[v] = vset1(0);
      for (ptrdiff_t i = k0; i < k0 + FR_KC && i < k; i++) {
        const real *a = (const real *)src + i * row + n0;
        for (ptrdiff_t v = 0; v < vectors; v++) sum[v] = vadd(sum[v], vload(a + v * VW));
      }
      real *d = (real *)dst + n0;
      for (ptrdiff_t v = 0; v < vectors; v++, d += VW) vstore(d, vadd(vload(d), sum[v]));
    }
  }
}
