/* Weight gradients: C += A^T B, a sum over all rows of all steps. */

/* C += A^T B with k over all rows. A block of FR_KC rows of B is packed into panels of GN columns. A
 * is read where it lies, or copied into panels of GM columns: if its rows lie a multiple of 4096
 * bytes apart, for they would share cache sets; and where FAR_APART says so, for many columns of B.
 * Panels lie 64 bytes more than their size apart, so that they do not share cache sets. Each tile's
 * sum over the block starts at zero. */
#define GM TILE_ROWS(VPLAIN)
enum { A_COLUMNS = 24 * 12, B_COLUMNS = 1024 }; /* of a block: 288 KB of A, 1 MB of B in float32 */
_Static_assert(A_COLUMNS % GM == 0 && B_COLUMNS % GN == 0, "whole tiles and whole panels");
#define APART (64 / (ptrdiff_t)sizeof(real))
#define PANEL (FR_KC * GN + APART)
#define A_PANEL (FR_KC * GM + APART)
#define GRADIENT_SCRATCH \
  ((ptrdiff_t)sizeof(real) * (B_COLUMNS / GN * PANEL + A_COLUMNS / GM * A_PANEL))

/* Columns [at, at + M) of the K rows of A, by a packed panel of B. */
FR_INLINE void gradient_tile(const int M, const int NV, real *c, ptrdiff_t c_pitch,
                             const real *const *rows, ptrdiff_t at, const real *b, ptrdiff_t k,
                             ptrdiff_t columns, int fresh) {
  vec acc[MAX_ROWS][VPLAIN];
  /* C comes from afar, and is wanted only after the loop */
  FR_UNROLL(12) for (int m = 0; m < M; m++)
    for (int v = 0; v < NV * VW; v += 64 / (int)sizeof(real))
      if (v < columns) FR_FETCH(c + m * c_pitch + v, 1, 3);
  FR_UNROLL(12) for (int m = 0; m < M; m++)
    FR_UNROLL(4) for (int v = 0; v < NV; v++) acc[m][v] = vset1(0);
#define ONE_K(k)                                                                      \
  {                                                                                   \
    const real *a = rows[k] + at;                                                     \
    vec bv[VPLAIN];                                                                   \
    FR_UNROLL(4) for (int v = 0; v < NV; v++) bv[v] = vload(b + (k) * GN + v * VW);   \
    FR_UNROLL(12) for (int m = 0; m < M; m++) {                                       \
      const vec am = vset1(a[m]);                                                     \
      FR_UNROLL(4) for (int v = 0; v < NV; v++) vadd_product(&acc[m][v], am, bv[v]);  \
    }                                                                                 \
  }
  for (; k >= 4; k -= 4, rows += 4, b += 4 * GN) {
    ONE_K(0) ONE_K(1) ONE_K(2) ONE_K(3)
  }
  for (; k > 0; k--, rows++, b += GN) ONE_K(0)
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

/* bias += the sums of V vectors of columns over the K rows; one that is not whole has `left`. */
FR_INLINE void sum_vectors(const int V, const int whole, real *bias, const real *const *rows,
                           ptrdiff_t at, ptrdiff_t k, ptrdiff_t left, int fresh) {
  vec sum[4];
  FR_UNROLL(4) for (int v = 0; v < V; v++) sum[v] = vset1(0);
  for (ptrdiff_t i = 0; i < k; i++) {
    const real *a = rows[i] + at;
    FR_UNROLL(4) for (int v = 0; v < V; v++)
      sum[v] = vadd(sum[v], whole ? vload(a + v * VW) : vloadn(a + v * VW, left));
  }
  FR_UNROLL(4) for (int v = 0; v < V; v++) {
    real *p = bias + v * VW;
    if (whole)
      vstore(p, fresh ? sum[v] : vadd(vload(p), sum[v]));
    else
      vstoren(p, fresh ? sum[v] : vadd(vloadn(p, left), sum[v]), left);
  }
}

/* bias += the sums of columns [at, at + n) over the K rows. */
FR_INLINE void sum_columns(real *bias, const real *const *rows, ptrdiff_t at, ptrdiff_t k,
                           ptrdiff_t n, int fresh) {
  ptrdiff_t u = 0;
  for (; n - u >= 4 * VW; u += 4 * VW) sum_vectors(4, 1, bias + u, rows, at + u, k, VW, fresh);
  for (; n - u >= VW; u += VW) sum_vectors(1, 1, bias + u, rows, at + u, k, VW, fresh);
  if (u < n) sum_vectors(1, 0, bias + u, rows, at + u, k, n - u, fresh);
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

/* dst = columns [at, at + n) of the K rows, GM of them in a panel. Whole vectors are written: what is
 * too much in them lies where the next row comes. */
FR_INLINE void pack_columns(real *dst, const real *const *rows, ptrdiff_t at, ptrdiff_t k,
                            ptrdiff_t n) {
  enum { WHOLE = (GM + VW - 1) / VW };
  for (ptrdiff_t i = 0; i < k; i++) {
    const real *src = rows[i] + at;
    real *to = dst + i * GM;
    ptrdiff_t u = 0;
    for (; n - u >= WHOLE * VW; u += GM, to += A_PANEL)
      FR_UNROLL(4) for (int v = 0; v < WHOLE; v++) vstore(to + v * VW, vload(src + u + v * VW));
    for (; u < n; u += GM, to += A_PANEL)
      memcpy(to, src + u, (n - u < GM ? n - u : GM) * sizeof(real));
  }
}

/* Whether rows of A that lie as far apart as these shall be copied for n columns of B. */
FR_INLINE int far_apart(const real *const *rows, ptrdiff_t n) {
  const size_t bytes = (size_t)((const char *)rows[1] - (const char *)rows[0]);
  return bytes % 4096 == 0 || (bytes >= FAR_APART && n >= 8 * GN);
}

static void gradient(const fr_gradient *s) {
  real *bp = (real *)s->scratch, *ap = bp + B_COLUMNS / GN * PANEL;
  const real *arow[FR_KC], *brow[FR_KC], *copy[FR_KC];
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
      const int copied = k > 1 && far_apart(arow, n);
      for (ptrdiff_t i = 0; copied && i < k; i++) copy[i] = ap + i * GM;
      for (int g = 0; g < s->gates; g++)
        for (ptrdiff_t u0 = s->u0; u0 < s->u1; u0 += A_COLUMNS) {
          const ptrdiff_t um = s->u1 - u0 < A_COLUMNS ? s->u1 - u0 : A_COLUMNS;
          const ptrdiff_t a0 = s->slot[g] + u0;
          if (n0 == 0 && s->bias)
            sum_columns((real *)s->bias + g * s->h + u0, arow, a0, k, um, fresh);
          if (copied) pack_columns(ap, arow, a0, k, um);
          const real *const *rows = copied ? copy : arow;
          real *c = (real *)s->c + (g * s->h + u0) * s->n + n0;
          for (ptrdiff_t j = 0; j < n; j += GN)
            for (ptrdiff_t u = 0; u < um; u += GM) {
              real *ct = c + u * s->n + j;
              const real *bt = bp + j / GN * PANEL;
              const ptrdiff_t at = copied ? u / GM * A_PANEL : a0 + u;
              const ptrdiff_t m = um - u < GM ? um - u : GM;
              switch (m) {
#define GRADIENT_CASE(M)                                                         \
  case M:                                                                        \
    if (M > GM) break;                                                           \
    if (n - j > VNARROW * VW)                                                    \
      gradient_tile(M, VPLAIN, ct, s->n, rows, at, bt, k, n - j, fresh);         \
    else                                                                         \
      gradient_tile(M, VNARROW, ct, s->n, rows, at, bt, k, n - j, fresh);        \
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
