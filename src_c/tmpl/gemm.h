/* Matrix products over packed panels: the one inner loop of the library, the products over all of
 * time, and the packing.
 *
 * A tile is M rows of A by Q panels of B, each panel NV vectors wide; M, Q and NV are compile-time
 * constants of the caller, so that the accumulators live in registers. Shapes: NREG = 16 registers
 * hold 12 accumulators (6x2, 4x3, 3x4), 32 hold up to 24 (12x2, 8x3, 6x4). */

#define MAX_ROWS 12
#define MAX_VECS 12
#define TILE_ROWS(NV) (NREG >= 32 ? (24 / (NV) < MAX_ROWS ? 24 / (NV) : MAX_ROWS) : 12 / (NV))
/* Few rows leave few chains; an FMA takes 4 cycles and two start in each, so take as many panels at
 * once as make eight, and at most as fit into the registers. */
#define TILE_PANELS(M, NV) ((M) * (NV) >= 8 ? 1 : (7 + (M) * (NV)) / ((M) * (NV)))
#define MAX_PANELS(M, NV) (12 / ((M) * (NV)))

typedef vec tile[MAX_ROWS][MAX_VECS];

/* The rows of A in a tile. If they lie `stride` bytes apart, NEAR of them share a pointer (vec/):
 * x86 has 15 for everything, and a pointer that lies on the stack costs the FMAs a turn. */
typedef struct {
  const real *row[MAX_ROWS];
  ptrdiff_t stride;
} tile_rows;

/* acc[m][v] += A(m, k) * W(v), for all m and v of a tile. */
#define A(m, k) ((const real *)((const char *)a[(m) / near * near] + (m) % near * stride))[k]
#define TILE_FMA(M, V, k, W)                                                                 \
  if (M < V) { /* hold a column of A, fetch B one vector at a time */                        \
    vec am[MAX_ROWS];                                                                        \
    FR_UNROLL(12) for (int m = 0; m < M; m++) am[m] = vset1(A(m, k));                         \
    FR_UNROLL(12) for (int v = 0; v < V; v++) {                                              \
      const vec bv = W(v);                                                                   \
      FR_UNROLL(12) for (int m = 0; m < M; m++) vadd_product(&acc[m][v], am[m], bv);           \
    }                                                                                        \
  } else { /* hold a row of B, fetch A one element at a time */                              \
    vec bv[MAX_VECS];                                                                        \
    FR_UNROLL(12) for (int v = 0; v < V; v++) bv[v] = W(v);                                  \
    FR_UNROLL(12) for (int m = 0; m < M; m++) {                                               \
      const vec am = vset1(A(m, k));                                                         \
      FR_UNROLL(12) for (int v = 0; v < V; v++) vadd_product(&acc[m][v], am, bv[v]);          \
    }                                                                                        \
  }
/* The pointers move on once in n k. The compiler must not see by how much, or it would make one for
 * each row again. */
#define ADVANCE(M, n)                                     \
  FR_UNROLL(12) for (int m = 0; m < M; m += near) {       \
    a[m] += n;                                            \
    __asm__("" : "+r"(a[m]));                             \
  }

/* Few rows wait for their own panel: nothing to gain by asking for the next. */
#define FETCHES_AHEAD(M, Q) ((Q) == 1 && (M) >= 4)

/* Where the panel lies that is read after this one, and how far to move on with each four k: while
 * the tiles of one panel compute, they bring the next into L2, each its share. */
typedef struct {
  const char *line;
  ptrdiff_t step; /* bytes */
} ahead;

FR_INLINE ahead ahead_of(const void *b, ptrdiff_t panel, ptrdiff_t width, ptrdiff_t p,
                         ptrdiff_t p0, ptrdiff_t p1, ptrdiff_t m0, ptrdiff_t M, ptrdiff_t rows) {
  const char *next = (const char *)b + (p + 1 < p1 ? p + 1 : p0) * panel * (ptrdiff_t)sizeof(real);
  const ahead a = {next + panel * (ptrdiff_t)sizeof(real) / rows * m0,
                   4 * width * (ptrdiff_t)sizeof(real) * M / rows};
  return a;
}

#define FETCH_AHEAD(M, Q, n) \
  if (FETCHES_AHEAD(M, Q)) __builtin_prefetch(next.line + 64 * (n), 0, 2)
/* A value that the compiler may move to another register here, and nowhere in a loop. */
#define SETTLE(M, V) \
  FR_UNROLL(12) for (int m = 0; m < M; m++) FR_UNROLL(12) for (int v = 0; v < V; v++) vsettle(&acc[m][v])
#define CHAIN_ROWS(M)      \
  const real *a[MAX_ROWS]; \
  FR_UNROLL(12) for (int m = 0; m < M; m++) a[m] = rows->row[m]; \
  const ptrdiff_t stride = rows->stride

/* acc[m][v] += sum over k of A(m, k) * b[k][v]; panels lie `panel` elements apart. Four k at a time:
 * what counts and jumps takes the FMAs' ports. */
FR_INLINE void chain(const int near, const int M, const int Q, const int NV, tile acc,
                     const tile_rows *rows, const real *b, ptrdiff_t panel, ptrdiff_t run,
                     ahead next) {
  const int V = Q * NV;
  CHAIN_ROWS(M);
  SETTLE(M, V);
#define WHOLE(v) vload(bk + ((v) / NV) * panel + ((v) % NV) * VW)
#define ONE_K(k)                                             \
  {                                                          \
    FETCH_AHEAD(M, Q, k);                                    \
    const real *bk = b + (k) * NV * VW;                      \
    TILE_FMA(M, V, k, WHOLE)                                 \
  }
  for (const real *end = b + run / 4 * 4 * NV * VW; b != end; b += 4 * NV * VW) {
    ONE_K(0) ONE_K(1) ONE_K(2) ONE_K(3)
    next.line += next.step;
    ADVANCE(M, 4)
  }
  for (run %= 4; run > 0; run--, b += NV * VW) {
    ONE_K(0)
    ADVANCE(M, 1)
  }
#undef ONE_K
#undef WHOLE
}

#if FR_BITS == 32
/* The same with two weights in a word: those of k even are its low half, a bfloat16; those of k odd
 * are the word itself, whose low bits were reckoned with when it was rounded (layers.py). */
FR_INLINE void chain_half(const int near, const int M, const int Q, const int NV, tile acc,
                          const tile_rows *rows, const real *b, ptrdiff_t panel, ptrdiff_t run,
                          ahead next) {
  const int V = Q * NV;
  CHAIN_ROWS(M);
  SETTLE(M, V);
#define WORD(v) vload(bk + ((v) / NV) * panel + ((v) % NV) * VW)
#define LOW(v) vlow(word[v])
#define HIGH(v) word[v]
#define TWO_K(k)                                                 \
  {                                                              \
    FETCH_AHEAD(M, Q, (k) / 2);                                  \
    const real *bk = b + (k) / 2 * NV * VW;                      \
    vec word[MAX_VECS];                                          \
    FR_UNROLL(12) for (int v = 0; v < V; v++) word[v] = WORD(v); \
    TILE_FMA(M, V, k, LOW)                                       \
    TILE_FMA(M, V, k + 1, HIGH)                                  \
  }
  for (const real *end = b + run / 4 * 2 * NV * VW; b != end; b += 2 * NV * VW) {
    TWO_K(0) TWO_K(2)
    next.line += next.step / 2;
    ADVANCE(M, 4)
  }
  run %= 4;
  if (run >= 2) {
    TWO_K(0)
    ADVANCE(M, 2)
    b += NV * VW;
    run -= 2;
  }
  if (run) {
    const real *bk = b;
    vec word[MAX_VECS];
    FR_UNROLL(12) for (int v = 0; v < V; v++) word[v] = WORD(v);
    TILE_FMA(M, V, 0, LOW)
  }
#undef TWO_K
#undef WORD
#undef LOW
#undef HIGH
}
#endif
#undef A

/* ---- tiles ---------------------------------------------------------------------------------- */

/* Every shape of tile is a function of its own: in one large function with all of them the compiler
 * loses track of its registers. */
typedef void (*tile_call)(const void *s, ptrdiff_t m0, ptrdiff_t p);
typedef tile_call tile_table[7][MAX_ROWS + 1]; /* [Q][M] */

#define FOR_SHAPES(DO, ...)                                                        \
  DO(1, 1, __VA_ARGS__) DO(2, 1, __VA_ARGS__) DO(3, 1, __VA_ARGS__)                \
  DO(4, 1, __VA_ARGS__) DO(5, 1, __VA_ARGS__) DO(6, 1, __VA_ARGS__)                \
  DO(7, 1, __VA_ARGS__) DO(8, 1, __VA_ARGS__) DO(9, 1, __VA_ARGS__)                \
  DO(10, 1, __VA_ARGS__) DO(11, 1, __VA_ARGS__) DO(12, 1, __VA_ARGS__)             \
  DO(1, 2, __VA_ARGS__) DO(1, 3, __VA_ARGS__) DO(1, 4, __VA_ARGS__)                \
  DO(1, 5, __VA_ARGS__) DO(1, 6, __VA_ARGS__) DO(2, 2, __VA_ARGS__)                \
  DO(2, 3, __VA_ARGS__) DO(3, 2, __VA_ARGS__)
#define IS_SHAPE(M, Q, NV) ((Q) == 1 ? (M) <= TILE_ROWS(NV) : (Q) <= MAX_PANELS(M, NV))

/* `name`, a table of functions that are CALL(M, Q) with s, m0 and p in sight. */
#define TILES(name, NV, type, CALL)                 \
  FOR_SHAPES(TILE_FUNCTION_, name, NV, type, CALL)  \
  static const tile_table name = {FOR_SHAPES(TILE_ENTRY_, name)};
#define TILE_ENTRY_(M, Q, name) [Q][M] = name##_##M##_##Q,
#define TILE_FUNCTION_(M, Q, name, NV, type, CALL)                                           \
  FR_ONE_COPY static void name##_##M##_##Q(const void *of, ptrdiff_t m0, ptrdiff_t p) {      \
    const type *s = (const type *)of;                                                        \
    if (IS_SHAPE(M, Q, NV)) CALL(M, Q);                                                      \
  }

/* Walks the tiles of `rows` rows by panels [p0, p1). Rows are cut into tiles of nearly equal height,
 * so that no tile is left with one row; up to three rows take several panels at once, cut likewise.
 * With `down` the panels come from the last to the first: what a walk has just read is the first
 * that the next one wants. */
FR_INLINE void walk_tiles(const tile_table tiles, const int NV, const void *s, ptrdiff_t rows,
                          ptrdiff_t p0, ptrdiff_t p1, int down) {
  const ptrdiff_t high = (rows + TILE_ROWS(NV) - 1) / TILE_ROWS(NV), panels = p1 - p0;
  ptrdiff_t wide = panels;
  if (rows <= 3 && MAX_PANELS(rows, NV) > 1) {
    const ptrdiff_t most = MAX_PANELS(rows, NV);
    wide = panels / TILE_PANELS(rows, NV);
    if (wide * most < panels) wide = (panels + most - 1) / most;
  }
  for (ptrdiff_t i = 0; i < wide; i++) {
    const ptrdiff_t g = down ? wide - 1 - i : i;
    const ptrdiff_t p = wide == panels ? g : panels * g / wide;
    const ptrdiff_t q = wide == panels ? 1 : panels * (g + 1) / wide - p;
    for (ptrdiff_t j = 0, m = 0; j < high; j++) {
      const ptrdiff_t n = high == 1 ? rows : rows * (j + 1) / high - m;
      tiles[q][n](s, m, p0 + p);
      m += n;
    }
  }
}

/* ---- products over all of time ------------------------------------------------------------- */

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
  const fr_product *s = block->s;
  const real *const *a = block->a + m0;
  real *const *c = block->c + m0;
  const ptrdiff_t size = s->runs * s->run * NV * VW; /* of a packed panel */
  const ptrdiff_t stride = plain ? VW : s->pitch, step = plain ? NV * VW : VW;
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
  ahead next = ahead_of(s->b, size, NV * VW, p, s->panel0, s->panel1, m0, M, block->rows);
  for (ptrdiff_t r = 0; r < s->runs; r++) {
    FR_UNROLL(12) for (int m = 0; m < M; m++) of.row[m] = a[m] + r * s->run_stride;
    chain(near, M, Q, NV, acc, &of, b + r * s->run * NV * VW, size, s->run, next);
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

FR_INLINE void product(const tile_table tiles, const int NV, const fr_product *s) {
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
    walk_tiles(tiles, NV, &b, b.rows, s->panel0, s->panel1, 0);
  }
}

#define CALL(M, Q) product_tile(NEAR, M, Q, VPLAIN, 1, s, m0, p)
TILES(plain_tiles, VPLAIN, product_block, CALL)
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
  return s->row1 <= s->a.count || s->a.count == 1 || s->a.outer == s->a.count * s->a.inner;
}
#define CHOOSE(s, tiles) (is_even(s) ? tiles : tiles##_apart)
#else
#define CHOOSE(s, tiles) tiles
#endif

static void product_plain(const fr_product *s) { product(CHOOSE(s, plain_tiles), VPLAIN, s); }
static void product_gates(const fr_product *s, int gates) {
  if (gates == 4) product(CHOOSE(s, gates4_tiles), 4, s);
  if (gates == 3) product(CHOOSE(s, gates3_tiles), 3, s);
}

/* ---- weight gradients ---------------------------------------------------------------------- */

/* C += A^T B with k over all rows. A block of FR_KC rows of B is packed into panels of GN columns,
 * and of A into slivers of GM columns; each tile's sum over the block starts at zero. Slivers and
 * panels lie 64 bytes more than their size apart: at a power of two they would share cache sets. */
#define GM TILE_ROWS(VPLAIN)
#define GN (VPLAIN * VW)
#define GMV ((GM + VW - 1) / VW) /* vectors of a row of a sliver */
enum { A_COLUMNS = 24 * 12, B_COLUMNS = 1024 }; /* per packed block: 288 and 1024 KB in float32 */
#define APART (64 / (ptrdiff_t)sizeof(real))
#define SLIVER (FR_KC * GM + APART)
#define PANEL (FR_KC * GN + APART)
#define GRADIENT_SCRATCH \
  ((ptrdiff_t)sizeof(real) * (B_COLUMNS / GN * PANEL + A_COLUMNS / GM * SLIVER))

FR_INLINE void gradient_tile(const int M, real *c, ptrdiff_t c_pitch, const real *a, const real *b,
                             ptrdiff_t k, ptrdiff_t columns) {
  vec acc[MAX_ROWS][VPLAIN];
  /* C comes from afar, and is wanted only after the loop */
  FR_UNROLL(12) for (int m = 0; m < M; m++)
    for (int v = 0; v < VPLAIN * VW; v += 64 / (int)sizeof(real))
      if (v < columns) __builtin_prefetch(c + m * c_pitch + v, 1, 3);
  FR_UNROLL(12) for (int m = 0; m < M; m++)
    FR_UNROLL(4) for (int v = 0; v < VPLAIN; v++) acc[m][v] = vset1(0);
#define ONE_K(k)                                                                      \
  {                                                                                   \
    vec bv[VPLAIN];                                                                   \
    FR_UNROLL(4) for (int v = 0; v < VPLAIN; v++) bv[v] = vload(b + (k) * GN + v * VW); \
    FR_UNROLL(12) for (int m = 0; m < M; m++) {                                       \
      const vec am = vset1(a[(k) * GM + m]);                                          \
      FR_UNROLL(4) for (int v = 0; v < VPLAIN; v++) vadd_product(&acc[m][v], am, bv[v]); \
    }                                                                                 \
  }
  for (; k >= 4; k -= 4, a += 4 * GM, b += 4 * GN) {
    ONE_K(0) ONE_K(1) ONE_K(2) ONE_K(3)
  }
  for (; k > 0; k--, a += GM, b += GN) ONE_K(0)
#undef ONE_K
  FR_UNROLL(12) for (int m = 0; m < M; m++) {
    FR_UNROLL(4) for (int v = 0; v < VPLAIN; v++) {
      real *p = c + m * c_pitch + v * VW;
      const ptrdiff_t left = columns - v * VW;
      if (left >= VW)
        vstore(p, vadd(vload(p), acc[m][v]));
      else if (left > 0)
        vstoren(p, vadd(vloadn(p, left), acc[m][v]), left);
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
  for (ptrdiff_t n0 = 0; n0 < s->n; n0 += B_COLUMNS) {
    const ptrdiff_t n = s->n - n0 < B_COLUMNS ? s->n - n0 : B_COLUMNS;
    for (ptrdiff_t k0 = 0; k0 < s->k; k0 += FR_KC) {
      const ptrdiff_t k = s->k - k0 < FR_KC ? s->k - k0 : FR_KC;
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
                vstoren(p, vadd(vloadn(p, left), sums[u / GM * GMV + v]), left);
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
#define GRADIENT_CASE(M)                                            \
  case M:                                                           \
    if (M <= GM) gradient_tile(M, ct, s->n, at, bt, k, n - j);      \
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

/* ---- packing ------------------------------------------------------------------------------- */

static void pack_plain(void *dst, const void *src, ptrdiff_t k, ptrdiff_t n, int gates,
                       const int *order, ptrdiff_t panel0, ptrdiff_t panel1) {
  const ptrdiff_t run = k / gates;
  for (ptrdiff_t p = panel0; p < panel1; p++)
    for (int g = 0; g < gates; g++)
      for (ptrdiff_t i = 0; i < run; i++) {
        const real *row = (const real *)src + (order[g] * run + i) * n;
        pack_panel((real *)dst + (p * k + g * run + i) * GN, &row, p * GN, 1, n - p * GN);
      }
}

/* r[i][j] and r[j][i] change places: log2(VW) times, the rows of both halves are zipped. */
FR_INLINE void transpose(vec *r) {
  vec t[VW];
  FR_UNROLL(4) for (int stage = 1; stage < VW; stage *= 2) {
    FR_UNROLL(8) for (int i = 0; i < VW / 2; i++) {
      t[2 * i] = vzip_low(r[i], r[i + VW / 2]);
      t[2 * i + 1] = vzip_high(r[i], r[i + VW / 2]);
    }
    FR_UNROLL(16) for (int i = 0; i < VW; i++) r[i] = t[i];
  }
}

/* One vector column of a panel from VW rows of src, zeros in the lanes beyond `lanes`. */
static void pack_lanes(real *dst, ptrdiff_t width, const real *src, ptrdiff_t k, ptrdiff_t lanes) {
  for (ptrdiff_t k0 = 0; k0 < k; k0 += VW) {
    const ptrdiff_t n = k - k0 < VW ? k - k0 : VW;
    vec r[VW];
    FR_UNROLL(16) for (int u = 0; u < VW; u++) {
      const real *from = src + u * k + k0;
      r[u] = u >= lanes ? vset1(0) : n == VW ? vload(from) : vloadn(from, n);
    }
    transpose(r);
    FR_UNROLL(16) for (int i = 0; i < VW; i++)
      if (i < n) vstore(dst + (k0 + i) * width, r[i]);
  }
}

static void pack_plain_t(void *dst, const void *src, ptrdiff_t k, ptrdiff_t n, ptrdiff_t panel0,
                         ptrdiff_t panel1) {
  for (ptrdiff_t j = panel0 * GN; j < panel1 * GN; j += VW)
    pack_lanes((real *)dst + j / GN * k * GN + j % GN, GN, (const real *)src + j * k, k, n - j);
}

static void pack_gates(void *dst, const void *src, ptrdiff_t k, ptrdiff_t h, int gates,
                       const int *order, ptrdiff_t panel0, ptrdiff_t panel1) {
  const ptrdiff_t width = gates * VW;
  for (ptrdiff_t p = panel0; p < panel1; p++)
    for (int v = 0; v < gates; v++)
      pack_lanes((real *)dst + p * k * width + v * VW, width,
                 (const real *)src + (order[v] * h + p * VW) * k, k, h - p * VW);
}

static void pack_bias(void *start, void *bias_n, const void *b_ih, const void *b_hh, ptrdiff_t h,
                      ptrdiff_t pitch, const fr_cell_row *cell) {
  const real *x = (const real *)b_ih, *r = (const real *)b_hh;
  for (int s = 0; s < cell->gates; s++) {
    const int g = cell->order_x[s];
    for (ptrdiff_t u = 0; u < pitch; u++) {
      const real bx = x && u < h ? x[g * h + u] : 0, br = r && u < h ? r[g * h + u] : 0;
      ((real *)start)[s * pitch + u] = g == cell->apart ? bx : bx + br;
      if (g == cell->apart) ((real *)bias_n)[u] = br;
    }
  }
}

static void scatter_add(void *dst, const void *src, ptrdiff_t row, const int32_t *index,
                        ptrdiff_t rows, ptrdiff_t c0, ptrdiff_t c1) {
  for (ptrdiff_t r = 0; r < rows; r++) {
    real *d = (real *)dst + index[r] * row;
    const real *s = (const real *)src + r * row;
    ptrdiff_t c = c0;
    for (; c + VW <= c1; c += VW) vstore(d + c, vadd(vload(d + c), vload(s + c)));
    if (c < c1) vstoren(d + c, vadd(vloadn(d + c, c1 - c), vloadn(s + c, c1 - c)), c1 - c);
  }
}

/* Columns of a row-major matrix are read and written for NEAR_ROWS of its rows at a time: as many
 * streams, each of which goes forward, beside whole cache lines of the tape rows. */
enum { NEAR_ROWS = 64 / sizeof(real) };

static void gather_columns(void *dst, const void *start, const void *w_ih, const int32_t *column,
                           ptrdiff_t r0, ptrdiff_t r1, ptrdiff_t k, ptrdiff_t h, ptrdiff_t pitch,
                           ptrdiff_t row, const fr_cell_row *cell) {
  for (int s = 0; s < cell->gates; s++)
    for (ptrdiff_t u0 = 0; u0 < pitch; u0 += NEAR_ROWS) {
      const ptrdiff_t n = h - u0 < NEAR_ROWS ? h - u0 : NEAR_ROWS; /* the rest is padding */
      const real *w = (const real *)w_ih + (cell->order_x[s] * h + u0) * k;
      const real *from = (const real *)start + s * pitch + u0;
      for (ptrdiff_t r = r0; r < r1; r++) {
        real *to = (real *)dst + r * row + s * pitch + u0;
        for (ptrdiff_t u = 0; u < n; u++) to[u] = from[u] + w[u * k + column[r]];
        for (ptrdiff_t u = n < 0 ? 0 : n; u < NEAR_ROWS && u0 + u < pitch; u++) to[u] = 0;
      }
    }
}

static void scatter_columns(void *dw_ih, void *db_ih, const void *src, const int32_t *column,
                            ptrdiff_t rows, ptrdiff_t k, ptrdiff_t h, ptrdiff_t pitch,
                            ptrdiff_t row, ptrdiff_t u0, ptrdiff_t u1, const fr_cell_row *cell) {
  for (int s = 0; s < cell->gates; s++)
    for (ptrdiff_t v0 = u0; v0 < u1; v0 += NEAR_ROWS) {
      const ptrdiff_t n = u1 - v0 < NEAR_ROWS ? u1 - v0 : NEAR_ROWS;
      const ptrdiff_t unit = cell->order_x[s] * h + v0;
      real *w = (real *)dw_ih + unit * k, sum[NEAR_ROWS] = {0};
      for (ptrdiff_t r = 0; r < rows; r++) {
        const real *from = (const real *)src + r * row + s * pitch + v0;
        for (ptrdiff_t u = 0; u < n; u++) {
          w[u * k + column[r]] += from[u];
          sum[u] += from[u];
        }
      }
      if (db_ih)
        for (ptrdiff_t u = 0; u < n; u++) ((real *)db_ih)[unit + u] += sum[u];
    }
}
