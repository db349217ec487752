/* LSTM (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000), torch's order:
 *   i, f, o = sigmoid(W x + b + U h'), g = tanh(...)      slots i f g o
 *   c = f c' + i g,  h = o tanh(c) */

FR_INLINE void lstm_forward_tile(const int half, const int M, const int Q, const fr_forward *s, ptrdiff_t m0,
                                 ptrdiff_t p) {
  tile acc;
  start_chain(M, Q, 4, 0, acc, s, m0, p);
  x_chain(half, M, Q, 4, 4 * VW, acc, s, m0, p);
  h_chain(half, M, Q, 4, 4 * VW, acc, s, m0, p);
  stack_tile a;
  FOR_TILE(M, Q * 4) a.v[m][v] = acc[m][v];
  /* two loops: the CPU does not see far enough to start a row while it waits for tanh(c) */
  for (int m = 0; m < M; m++)
    for (int q = 0; q < Q; q++) {
      const ptrdiff_t at = (p + q) * VW, cell = (m0 + m) * s->pitch + at;
      const vec i = v_sigmoid(a.v[m][4 * q]), f = v_sigmoid(a.v[m][4 * q + 1]);
      const vec g = v_tanh(a.v[m][4 * q + 2]), o = v_sigmoid(a.v[m][4 * q + 3]);
      const vec c = vfma(f, vload((const real *)s->c_prev + cell), vmul(i, g));
      vstore((real *)s->c + cell, c);
      a.v[m][4 * q] = c;
      a.v[m][4 * q + 3] = o;
      if (s->gates) {
        real *row = (real *)s->gates + (m0 + m) * s->gates_row + at;
        vstore(row, i);
        vstore(row + s->pitch, f);
        vstore(row + 2 * s->pitch, g);
        vstore(row + 3 * s->pitch, o);
      }
    }
  for (int m = 0; m < M; m++)
    for (int q = 0; q < Q; q++) {
      const ptrdiff_t at = (p + q) * VW, cell = (m0 + m) * s->pitch + at;
      const vec h = vmul(a.v[m][4 * q + 3], v_tanh(a.v[m][4 * q]));
      vstore((real *)s->h + cell, h);
      if (s->y) store_user(user_row(s->y, s->y_at, s->y_row, m0 + m), at, h, s->hidden);
    }
}

FR_INLINE void lstm_walk_panels(const int Q, const fr_forward *s) {
  const real *before = (const real *)s->h_prev;
  vec h0 = vload(before), c[ROW_PANELS];
  FOR_PANELS(Q) c[q] = vload((const real *)s->c_prev + q * VW);
  for (ptrdiff_t t = 0; t < s->rows; t++) {
    tile a;
    start_chain(1, Q, 4, 0, a, s, t, 0);
    x_chain(0, 1, Q, 4, 4 * VW, a, s, t, 0);
    row_chain(Q * 4, a[0], h0, before, (const real *)s->wh, s->hidden);
    FOR_PANELS(Q) {
      const vec g = v_tanh(a[0][4 * q + 2]), i = v_sigmoid(a[0][4 * q]);
      c[q] = vfma(v_sigmoid(a[0][4 * q + 1]), c[q], vmul(i, g));
    }
    FOR_PANELS(Q) {
      const vec h = vmul(v_sigmoid(a[0][4 * q + 3]), v_tanh(c[q]));
      store_h(s, t, q, h);
      if (q == 0) h0 = h;
    }
    before = (const real *)s->h + t * s->pitch;
  }
  FOR_PANELS(Q) vstore((real *)s->c + q * VW, c[q]);
}

/* do = dh tanh(c), dc += dh o (1 - tanh(c)^2), di = dc g, dg = dc i, df = dc c', dc' = dc f;
 * each gate's gradient then goes through its activation. h, which the weight gradients want and the
 * tape leaves out, takes c's place. */
FR_INLINE void lstm_backward_tile(const int M, const int Q, const int NV, const fr_backward *s,
                                  ptrdiff_t m0, ptrdiff_t p) {
  stack_tile dh_;
  dh_tile(M, Q, NV, 4, 0, &dh_, s, m0, p);
  for (int m = 0; m < M; m++)
    for (int v = 0; v < Q * NV; v++) {
      const ptrdiff_t at = (p * VPLAIN + v) * VW, cell = (m0 + m) * s->pitch + at;
      if (at >= s->hidden) break;
      real *row = (real *)s->gates + (m0 + m) * s->gates_row + at;
      const vec i = vload(row), f = vload(row + s->pitch);
      const vec g = vload(row + 2 * s->pitch), o = vload(row + 3 * s->pitch);
      const vec tc = v_tanh(vload((const real *)s->c + cell));
      vstore((real *)s->c + cell, vmul(o, tc));
      const vec dh = dh_.v[m][v];
      const vec do_ = vmul(dh, tc);
      const vec dc = vfma(vmul(dh, o), v_dtanh(tc), vload((const real *)s->dc + cell));
      if (s->dc_out)
        store_user(user_row(s->dc_out, s->out_at, s->out_row, m0 + m), at, dc, s->hidden);
      const vec di = vmul(dc, g), df = vmul(dc, vload((const real *)s->c_prev + cell));
      const vec dg = vmul(dc, i);
      vstore(row, vmul(di, v_dsigmoid(i)));
      vstore(row + s->pitch, vmul(df, v_dsigmoid(f)));
      vstore(row + 2 * s->pitch, vmul(dg, v_dtanh(g)));
      vstore(row + 3 * s->pitch, vmul(do_, v_dsigmoid(o)));
      vstore((real *)s->dc + cell, vmul(dc, f));
      vstore((real *)s->dh + cell, vset1(0));
    }
}

#define CALL(M, Q) lstm_forward_tile(0, M, Q, s, m0, p)
TILES(lstm_forward_tiles, 4, fr_forward, CALL)
#undef CALL
static void lstm_forward(const fr_forward *s) {
  walk_tiles(lstm_forward_tiles, 4, s, s->rows, s->panel0, s->panel1, ALL_WIDE, s->down);
}
#if FR_BITS == 32
#define CALL(M, Q) lstm_forward_tile(1, M, Q, s, m0, p)
TILES(lstm_half_tiles, 4, fr_forward, CALL)
#undef CALL
static void lstm_forward_half(const fr_forward *s) {
  walk_tiles(lstm_half_tiles, 4, s, s->rows, s->panel0, s->panel1, ALL_WIDE, s->down);
}
#endif
#define CALL(Q) lstm_walk_panels(Q, s)
WALK(lstm_walk)
#undef CALL
#define CALL(M, Q, NV) lstm_backward_tile(M, Q, NV, s, m0, p)
PLAIN_TILES(lstm_backward_tiles, fr_backward, CALL)
#undef CALL
static void lstm_backward(const fr_backward *s) {
  walk_tiles(lstm_backward_tiles, VPLAIN, s, s->rows, s->panel0, s->panel1, s->hidden, s->down);
}
