/* What the cells share: the gates' chains of a tile, going forward, and dh going back. A cell's own
 * file adds the epilogue. Accumulators leave the registers through a small array on the stack, so
 * that one loop of activations serves every tile shape. */

typedef struct {
  vec v[MAX_ROWS][MAX_VECS];
} stack_tile;

#define FOR_TILE(M, V) \
  FR_UNROLL(12) for (int m = 0; m < M; m++) FR_UNROLL(12) for (int v = 0; v < V; v++)

/* acc = start, laid out as product_tile's C. */
FR_INLINE void start_chain(const int M, const int Q, const int NV, const int plain, tile acc,
                           const fr_forward *s, ptrdiff_t m0, ptrdiff_t p) {
  const ptrdiff_t stride = plain ? VW : s->pitch, step = plain ? GN : VW;
  const real *row[MAX_ROWS];
  FR_UNROLL(12) for (int m = 0; m < M; m++)
    row[m] = (const real *)s->start + (s->index ? s->index[m0 + m] : m0 + m) * s->start_row;
  FOR_TILE(M, Q * NV) {
    const ptrdiff_t at = (p + v / NV) * step + (v % NV) * stride;
    acc[m][v] = !plain || at < s->hidden ? vload(row[m] + at) : vset1(0);
  }
}

/* `half`: the weights are bfloat16, two in a word. */
FR_INLINE void rows_chain(const int half, const int M, const int Q, const int NV, const int width,
                          tile acc, const fr_forward *s, const void *base, ptrdiff_t row,
                          const void *w, ptrdiff_t k, ptrdiff_t m0, ptrdiff_t p) {
  tile_rows a;
  FR_UNROLL(12) for (int m = 0; m < M; m++) a.row[m] = (const real *)base + (m0 + m) * row;
  a.stride = row * (ptrdiff_t)sizeof(real);
  const ptrdiff_t panel = (half ? (k + 1) / 2 : k) * width;
  const real *b = (const real *)w + p * panel;
  const ahead next = ahead_of(w, panel, width, p, s->panel0, s->panel1, s->down, m0, M, s->rows);
#if FR_BITS == 32
  if (half) {
    chain_half(NEAR, M, Q, NV, width, acc, &a, b, panel, k, next);
    return;
  }
#endif
  chain(NEAR, M, Q, NV, width, acc, &a, b, panel, k, next);
}

FR_INLINE void x_chain(const int half, const int M, const int Q, const int NV, const int width,
                       tile acc, const fr_forward *s, ptrdiff_t m0, ptrdiff_t p) {
  if (s->input) rows_chain(half, M, Q, NV, width, acc, s, s->x, s->x_row, s->wx, s->input, m0, p);
}

FR_INLINE void h_chain(const int half, const int M, const int Q, const int NV, const int width,
                       tile acc, const fr_forward *s, ptrdiff_t m0, ptrdiff_t p) {
  rows_chain(half, M, Q, NV, width, acc, s, s->h_prev, s->pitch, s->wh, s->hidden, m0, p);
}

/* Row m of a caller's array. */
FR_INLINE real *user_row(const void *base, const int32_t *at, ptrdiff_t row, ptrdiff_t m) {
  return (real *)base + (at ? at[m] : m) * row;
}

FR_INLINE void store_user(real *row, ptrdiff_t at, vec a, ptrdiff_t hidden) {
  if (hidden - at >= VW)
    vstore(row + at, a);
  else
    vstoren(row + at, a, hidden - at);
}

/* dh(t) of a plain tile: the chain of dG(t+1) W_hh over gates and units, whose slots lie side by
 * side from slot0 on, starts from the carry; then comes dy. In this order the carry into step t is
 * whole before dy(t) is added: a loop over single steps has the same sums. */
FR_INLINE void dh_tile(const int M, const int Q, const int NV, const int gates, const int slot0,
                       stack_tile *out, const fr_backward *s, ptrdiff_t m0, ptrdiff_t p) {
  tile acc;
  FOR_TILE(M, Q * NV) {
    const ptrdiff_t at = (p * VPLAIN + v) * VW, left = s->hidden - at;
    acc[m][v] = vset1(0);
    if (left > 0) acc[m][v] = vload((const real *)s->dh + (m0 + m) * s->pitch + at);
  }
  if (s->next) {
    const ptrdiff_t size = gates * s->hidden * GN;
    tile_rows a;
    a.stride = s->gates_row * (ptrdiff_t)sizeof(real);
    ahead next = ahead_of(s->wb, size, GN, p, s->panel0, s->panel1, s->down, m0, M, s->rows);
    for (int g = 0; g < gates; g++) {
      FR_UNROLL(12) for (int m = 0; m < M; m++)
        a.row[m] = (const real *)s->next + (m0 + m) * s->gates_row + (slot0 + g) * s->pitch;
      chain(NEAR, M, Q, NV, GN, acc, &a, (const real *)s->wb + p * size + g * s->hidden * GN,
            size, s->hidden, next);
      next.line += s->hidden / 4 * next.step;
    }
  }
  FOR_TILE(M, Q * NV) {
    const ptrdiff_t at = (p * VPLAIN + v) * VW, left = s->hidden - at;
    if (left > 0 && s->dy) {
      const real *dy = user_row(s->dy, s->dy_at, s->dy_row, m0 + m) + at;
      acc[m][v] = vadd(acc[m][v], left >= VW ? vload(dy) : vloadn(dy, left));
    }
    out->v[m][v] = acc[m][v];
  }
  if (s->dh_out)
    for (int m = 0; m < M; m++)
      for (int v = 0; v < Q * NV; v++) {
        const ptrdiff_t at = (p * VPLAIN + v) * VW;
        if (at >= s->hidden) break;
        store_user(user_row(s->dh_out, s->out_at, s->out_row, m0 + m), at, out->v[m][v], s->hidden);
      }
}
