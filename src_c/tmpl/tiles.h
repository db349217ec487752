/* Tiles of all shapes as functions, and the walk over the rows and panels of a product. */

/* Every shape of tile is a function of its own: in one large function with all of them the compiler
 * loses track of its registers. */
typedef void (*tile_call)(const void *s, ptrdiff_t m0, ptrdiff_t p);
typedef tile_call tile_table[7][MAX_ROWS + 1]; /* [Q][M]; [0][M] is narrow */

#define FOR_SHAPES(DO, ...)                                                        \
  DO(1, 1, __VA_ARGS__) DO(2, 1, __VA_ARGS__) DO(3, 1, __VA_ARGS__)                \
  DO(4, 1, __VA_ARGS__) DO(5, 1, __VA_ARGS__) DO(6, 1, __VA_ARGS__)                \
  DO(7, 1, __VA_ARGS__) DO(8, 1, __VA_ARGS__) DO(9, 1, __VA_ARGS__)                \
  DO(10, 1, __VA_ARGS__) DO(11, 1, __VA_ARGS__) DO(12, 1, __VA_ARGS__)             \
  DO(1, 2, __VA_ARGS__) DO(1, 3, __VA_ARGS__) DO(1, 4, __VA_ARGS__)                \
  DO(1, 5, __VA_ARGS__) DO(1, 6, __VA_ARGS__) DO(2, 2, __VA_ARGS__)                \
  DO(2, 3, __VA_ARGS__) DO(3, 2, __VA_ARGS__)
#define IS_SHAPE(M, Q, NV) ((Q) == 1 ? (M) <= TILE_ROWS(NV) : (Q) <= MAX_PANELS(M, NV))

/* Narrow tiles have 4 to 8 rows. Fewer wait for their sums and would take as long as a wide tile;
 * eight sums are as many as start while one FMA ends. */
enum { NARROW_LEAST = 4, NARROW_MOST = 8 };
#define FOR_NARROW(DO, ...)                                                        \
  DO(4, 0, __VA_ARGS__) DO(5, 0, __VA_ARGS__) DO(6, 0, __VA_ARGS__)                \
  DO(7, 0, __VA_ARGS__) DO(8, 0, __VA_ARGS__)

/* `name`, a table of functions that are CALL(M, Q) with s, m0 and p in sight. */
#define TILES(name, NV, type, CALL)                 \
  FOR_SHAPES(TILE_FUNCTION_, name, NV, type, CALL)  \
  static const tile_table name = {FOR_SHAPES(TILE_ENTRY_, name)};
/* The same over plain panels: CALL(M, Q, NV). */
#define PLAIN_TILES(name, type, CALL)                                        \
  FOR_SHAPES(PLAIN_FUNCTION_, name, type, CALL)                              \
  FOR_NARROW(NARROW_FUNCTION_, name, type, CALL)                             \
  static const tile_table name = {FOR_SHAPES(TILE_ENTRY_, name)              \
                                  FOR_NARROW(TILE_ENTRY_, name)};
#define TILE_ENTRY_(M, Q, name) [Q][M] = name##_##M##_##Q,
#define TILE_FUNCTION_(M, Q, name, NV, type, CALL) \
  ONE_TILE_(M, Q, name, type, IS_SHAPE(M, Q, NV), CALL(M, Q))
#define PLAIN_FUNCTION_(M, Q, name, type, CALL) \
  ONE_TILE_(M, Q, name, type, IS_SHAPE(M, Q, VPLAIN), CALL(M, Q, VPLAIN))
#define NARROW_FUNCTION_(M, Q, name, type, CALL) \
  ONE_TILE_(M, Q, name, type, VNARROW > 0, CALL(M, 1, VNARROW))
#define ONE_TILE_(M, Q, name, type, known, call)                                             \
  FR_ONE_COPY static void name##_##M##_##Q(const void *of, ptrdiff_t m0, ptrdiff_t p) {      \
    const type *s = (const type *)of;                                                        \
    if (known) call;                                                                         \
  }

/* Walks the tiles of `rows` rows by panels [p0, p1). Rows are cut into tiles of nearly equal height,
 * so that no tile is left with one row; up to three rows take several panels at once, cut likewise.
 * The panel that has no more than VNARROW vectors of `columns` takes narrow tiles; ALL_WIDE: none
 * does. With `down` the panels come from the last to the first: what a walk has just read is the
 * first that the next one wants. */
#define ALL_WIDE PTRDIFF_MAX
FR_INLINE void walk_tiles(const tile_table tiles, const int NV, const void *s, ptrdiff_t rows,
                          ptrdiff_t p0, ptrdiff_t p1, ptrdiff_t columns, int down) {
  const ptrdiff_t wide_high = (rows + TILE_ROWS(NV) - 1) / TILE_ROWS(NV), panels = p1 - p0;
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
    const int narrow = columns != ALL_WIDE && rows >= NARROW_LEAST &&
                       columns - (p0 + p) * NV * VW <= VNARROW * VW;
    const ptrdiff_t high = narrow ? (rows + NARROW_MOST - 1) / NARROW_MOST : wide_high;
    for (ptrdiff_t j = 0, m = 0; j < high; j++) {
      const ptrdiff_t n = high == 1 ? rows : rows * (j + 1) / high - m;
      tiles[narrow ? 0 : q][n](s, m, p0 + p);
      m += n;
    }
  }
}
