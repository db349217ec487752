/* Matrix products over all of time: C = start + A B with packed B. */

enum { BLOCK_ROWS = 96 }; /* rows of A that are walked per panel of B: they stay in L2 */

typedef struct {
  const fr_product *s;
  const real *a[BLOCK_ROWS]; /* rows of a block */
  real *c[BLOCK_ROWS];
  ptrdiff_t rows;
} product_block;

/* One tile of C = start + A B. A plain panel's vectors are neighbours in a row of C (stride VW); a
 * gate panel has one vector in each of the row's slots (stride `pitch`). */
FR_INLINE void product_tile(const int near, const int M, const int Q, const int NV,
                            const int plain, const product_block *block, ptrdiff_t m0,
                            ptrdiff_t p) {
  const int width = plain ? GN : NV * VW;
  const fr_product *s = block->s;
  const real *const *a = block->a + m0;
  real *const *c = block->c + m0;
  const ptrdiff_t size = s->runs * s->run * width; /* of a packed panel */
  const ptrdiff_t stride = plain ? VW : s->pitch, step = plain ? GN : VW;
  const real *b = (const real *)s->b + p * size, *bias = (const real *)s->bias;
  tile acc;
  FR_UNROLL(12) for (int m = 0; m < M; m++) {
    FR_UNROLL(12) for (int v = 0; v < Q * NV; v++) {
      const ptrdiff_t at = (p + v / NV) * step + (v % NV) * stride;
      const ptrdiff_t left = s->n - at;
      if (!s->accumulate)
        acc[m][v] = bias ? vload(bias + at) : vset1(0);
      else
        acc[m][v] = !plain || left >= VW ? vload(c[m] + at) : left > 0 ? vloadn(c[m] + at, left) : vset1(0);
    }
  }
  tile_rows of;
  of.stride = M > 1 ? (const char *)a[1] - (const char *)a[0] : 0;
  ahead next = ahead_of(s->b, size, width, p, s->panel0, s->panel1, 0, m0, M, block->rows);
  for (ptrdiff_t r = 0; r < s->runs; r++) {
    FR_UNROLL(12) for (int m = 0; m < M; m++) of.row[m] = a[m] + r * s->run_stride;
    chain(near, M, Q, NV, width, acc, &of, b + r * s->run * width, size, s->run, next);
    next.line += s->run / 4 * next.step;
  }
  FR_UNROLL(12) for (int m = 0; m < M; m++) {
    FR_UNROLL(12) for (int v = 0; v < Q * NV; v++) {
      const ptrdiff_t at = (p + v / NV) * step + (v % NV) * stride;
      const ptrdiff_t left = s->n - at;
      if (!plain || left >= VW)
        vstore(c[m] + at, acc[m][v]);
      else if (left > 0)
        vstoren(c[m] + at, acc[m][v], left);
    }
  }
}

FR_INLINE void product(const tile_table tiles, const int NV, const fr_product *s,
                       ptrdiff_t columns) {
  product_block b;
  b.s = s;
  /* a block of A should take about 128 KB of L2 */
  ptrdiff_t block = (ptrdiff_t)(128 * 1024 / sizeof(real)) / (s->runs * s->run + 1);
  block = block > BLOCK_ROWS ? BLOCK_ROWS : block < 24 ? 24 : block / 24 * 24;
  for (ptrdiff_t r0 = s->row0; r0 < s->row1; r0 += block) {
    b.rows = s->row1 - r0 < block ? s->row1 - r0 : block;
    for (ptrdiff_t r = 0; r < b.rows; r++) {
      b.a[r] = fr_row(&s->a, r0 + r);
      b.c[r] = fr_row(&s->c, r0 + r);
    }
    walk_tiles(tiles, NV, &b, b.rows, s->panel0, s->panel1, columns, 0);
  }
}

#define CALL(M, Q, NV) product_tile(NEAR, M, Q, NV, 1, s, m0, p)
PLAIN_TILES(plain_tiles, product_block, CALL)
#undef CALL
#define CALL(M, Q) product_tile(NEAR, M, Q, 4, 0, s, m0, p)
TILES(gates4_tiles, 4, product_block, CALL)
#undef CALL
#define CALL(M, Q) product_tile(NEAR, M, Q, 3, 0, s, m0, p)
TILES(gates3_tiles, 3, product_block, CALL)
#undef CALL
#if NEAR > 1
#define CALL(M, Q) product_tile(1, M, Q, VPLAIN, 1, s, m0, p)
TILES(plain_tiles_apart, VPLAIN, product_block, CALL)
#undef CALL
#define CALL(M, Q) product_tile(1, M, Q, 4, 0, s, m0, p)
TILES(gates4_tiles_apart, 4, product_block, CALL)
#undef CALL
#define CALL(M, Q) product_tile(1, M, Q, 3, 0, s, m0, p)
TILES(gates3_tiles_apart, 3, product_block, CALL)
#undef CALL
/* Whether all rows of A lie equally far apart. */
FR_INLINE int is_even(const fr_product *s) {
  return s->a.at ? 0 : s->row1 <= s->a.count || s->a.count == 1 || s->a.outer == s->a.count * s->a.inner;
}
#define PRODUCT(tiles, NV, s, columns)          \
  do {                                          \
    if (is_even(s))                             \
      product(tiles, NV, s, columns);           \
    else                                        \
      product(tiles##_apart, NV, s, ALL_WIDE);  \
  } while (0)
#else
#define PRODUCT(tiles, NV, s, columns) product(tiles, NV, s, columns)
#endif

static void product_plain(const fr_product *s) { PRODUCT(plain_tiles, VPLAIN, s, s->n); }
static void product_gates(const fr_product *s, int gates) {
  if (gates == 4)
    PRODUCT(gates4_tiles, 4, s, ALL_WIDE);
  else
    PRODUCT(gates3_tiles, 3, s, ALL_WIDE);
}
