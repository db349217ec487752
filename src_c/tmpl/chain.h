/* The one inner loop of the library: a tile of sums over one or more packed panels.
 *
 * A tile is M rows of A by Q panels of B, each panel NV vectors wide; M, Q and NV are compile-time
 * constants of the caller, so that the accumulators live in registers. Shapes: NREG = 16 registers
 * hold 12 accumulators (6x2, 4x3, 3x4), 32 hold up to 24 (12x2, 8x3, 6x4).
 *
 * The last panel of a matrix may be at most half full. Tiles of four rows and more are narrow then:
 * they compute the first VNARROW vectors of VPLAIN only. */

#define MAX_ROWS 12
#define MAX_VECS 12
#define GN (VPLAIN * VW) /* columns of a plain panel */
#if defined(FR_ONE_TILE) /* a switch for tests: tiles of one row by one panel; the bits stay */
#define TILE_ROWS(NV) 1
#define TILE_PANELS(M, NV) 1
#define MAX_PANELS(M, NV) 1
#undef VNARROW
#define VNARROW 0
#else
#define TILE_ROWS(NV) (NREG >= 32 ? (24 / (NV) < MAX_ROWS ? 24 / (NV) : MAX_ROWS) : 12 / (NV))
/* Few rows leave few chains; an FMA takes 4 cycles and two start in each, so take as many panels at
 * once as make eight, and at most as fit into the registers. */
#define TILE_PANELS(M, NV) ((M) * (NV) >= 8 ? 1 : (7 + (M) * (NV)) / ((M) * (NV)))
#define MAX_PANELS(M, NV) (12 / ((M) * (NV)))
#endif

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
#define FETCHES_AHEAD(M, Q) ((Q) == 1 && (M) >= 3)
/* Panels of a small matrix stay in L2: there is nothing to bring. */
enum { STAYS_IN_L2 = 256 * 1024 };

/* Where the panel lies that is read after this one, and how far to move on with each four k: while
 * the tiles of one panel compute, they bring the next into L2, each its share. */
typedef struct {
  const char *line;
  ptrdiff_t step; /* bytes; 0: nothing to bring */
} ahead;

FR_INLINE ahead ahead_of(const void *b, ptrdiff_t panel, ptrdiff_t width, ptrdiff_t p,
                         ptrdiff_t p0, ptrdiff_t p1, int down, ptrdiff_t m0, ptrdiff_t M,
                         ptrdiff_t rows) {
  const ptrdiff_t size = panel * (ptrdiff_t)sizeof(real);
  const ptrdiff_t after = down ? (p > p0 ? p - 1 : p0) : p + 1 < p1 ? p + 1 : p0;
  ahead a = {(const char *)b, 0};
  if ((p1 - p0) * size <= STAYS_IN_L2) return a; /* no divisions: a short chain would feel them */
  a.line = (const char *)b + after * size + size / rows * m0;
  a.step = 4 * width * (ptrdiff_t)sizeof(real) * M / rows;
  return a;
}

/* With each four k, `count` lines. __builtin_expect keeps them within the loop: elsewhere, the loop
 * jumps and moves more, and an LSTM of 64 to 256 units takes 5% longer. */
#define FETCH_AHEAD(M, Q, count, bytes)                                              \
  if (FETCHES_AHEAD(M, Q) && __builtin_expect(next.step != 0, 1)) {                  \
    FR_UNROLL(4) for (int n = 0; n < count; n++) FR_FETCH(next.line + 64 * n, 0, 2); \
    next.line += bytes;                                                              \
  }
/* A value that the compiler may move to another register here, and nowhere in a loop. */
#define SETTLE(M, V) \
  FR_UNROLL(12) for (int m = 0; m < M; m++) FR_UNROLL(12) for (int v = 0; v < V; v++) vsettle(&acc[m][v])
#define CHAIN_ROWS(M)      \
  const real *a[MAX_ROWS]; \
  FR_UNROLL(12) for (int m = 0; m < M; m++) a[m] = rows->row[m]; \
  const ptrdiff_t stride = rows->stride

/* acc[m][v] += sum over k of A(m, k) * b[k][v]; rows of b lie `width` elements apart, panels `panel`.
 * Four k at a time: what counts and jumps takes the FMAs' ports. */
FR_INLINE void chain(const int near, const int M, const int Q, const int NV, const int width,
                     tile acc, const tile_rows *rows, const real *b, ptrdiff_t panel,
                     ptrdiff_t run, ahead next) {
  const int V = Q * NV;
  CHAIN_ROWS(M);
  SETTLE(M, V);
#define WHOLE(v) vload(bk + ((v) / NV) * panel + ((v) % NV) * VW)
#define ONE_K(k)                                             \
  {                                                          \
    const real *bk = b + (k) * width;                        \
    TILE_FMA(M, V, k, WHOLE)                                 \
  }
  for (const real *end = b + run / 4 * 4 * width; b != end; b += 4 * width) {
    FETCH_AHEAD(M, Q, 4, next.step)
    ONE_K(0) ONE_K(1) ONE_K(2) ONE_K(3)
    ADVANCE(M, 4)
  }
  for (run %= 4; run > 0; run--, b += width) {
    ONE_K(0)
    ADVANCE(M, 1)
  }
#undef ONE_K
#undef WHOLE
}

#if FR_BITS == 32
/* The same with two weights in a word: those of k even are its low half, a bfloat16; those of k odd
 * are the word itself; its rounding includes the low half (fastrnn/layers/packs.py). */
FR_INLINE void chain_half(const int near, const int M, const int Q, const int NV, const int width,
                          tile acc, const tile_rows *rows, const real *b, ptrdiff_t panel,
                          ptrdiff_t run, ahead next) {
  const int V = Q * NV;
  CHAIN_ROWS(M);
  SETTLE(M, V);
#define WORD(v) vload(bk + ((v) / NV) * panel + ((v) % NV) * VW)
#define LOW(v) vlow(word[v])
#define HIGH(v) word[v]
#define TWO_K(k)                                                 \
  {                                                              \
    const real *bk = b + (k) / 2 * width;                        \
    vec word[MAX_VECS];                                          \
    FR_UNROLL(12) for (int v = 0; v < V; v++) word[v] = WORD(v); \
    TILE_FMA(M, V, k, LOW)                                       \
    TILE_FMA(M, V, k + 1, HIGH)                                  \
  }
  for (const real *end = b + run / 4 * 2 * width; b != end; b += 2 * width) {
    FETCH_AHEAD(M, Q, 2, next.step / 2)
    TWO_K(0) TWO_K(2)
    ADVANCE(M, 4)
  }
  run %= 4;
  if (run >= 2) {
    TWO_K(0)
    ADVANCE(M, 2)
    b += width;
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
