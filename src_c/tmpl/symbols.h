/* Input that is symbols: rows of an embedding, or one-hot rows, gathered and summed back. */

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
