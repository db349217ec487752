/* GRU (Cho et al. 2014) with the reset gate after the recurrent product, as torch and cuDNN:
 *   r, z = sigmoid(W x + b + U h'),  m = U_n h' + b_hn,  n = tanh(W_n x + b_in + r m)
 *   h = (1 - z) n + z h'             slots n r z m */

FR_INLINE void gru_forward_tile(const int half, const int M, const int Q, const fr_forward *s, ptrdiff_t m0,
                                ptrdiff_t p) {
  tile acc;
  stack_tile a, x;
  start_chain(M, Q, 3, 0, acc, s, m0, p);
  x_chain(half, M, Q, 3, 3 * VW, acc, s, m0, p);
  /* the candidate's two halves stay apart: its x half leaves, its h half starts at b_hn */
  FR_UNROLL(12) for (int m = 0; m < M; m++) FR_UNROLL(4) for (int q = 0; q < Q; q++) {
    x.v[m][q] = acc[m][3 * q];
    acc[m][3 * q] = vload((const real *)s->bias_n + (p + q) * VW);
  }
  h_chain(half, M, Q, 3, 3 * VW, acc, s, m0, p);
  FOR_TILE(M, Q * 3) a.v[m][v] = acc[m][v];
  /* two loops: the CPU does not see far enough to start a row while it waits for tanh */
  for (int m = 0; m < M; m++)
    for (int q = 0; q < Q; q++) {
      const ptrdiff_t at = (p + q) * VW;
      const vec mm = a.v[m][3 * q];
      const vec r = v_sigmoid(a.v[m][3 * q + 1]), z = v_sigmoid(a.v[m][3 * q + 2]);
      a.v[m][3 * q] = vfma(r, mm, x.v[m][q]);
      a.v[m][3 * q + 2] = z;
      if (s->gates) {
        real *row = (real *)s->gates + (m0 + m) * s->gates_row + at;
        vstore(row + s->pitch, r);
        vstore(row + 2 * s->pitch, z);
        vstore(row + 3 * s->pitch, mm);
      }
    }
  for (int m = 0; m < M; m++)
    for (int q = 0; q < Q; q++) {
      const ptrdiff_t at = (p + q) * VW, cell = (m0 + m) * s->pitch + at;
      const vec n = v_tanh(a.v[m][3 * q]), z = a.v[m][3 * q + 2];
      const vec before = vmul(z, vload((const real *)s->h_prev + cell));
      const vec h = vfma(vsub(vset1(1), z), n, before); /* one operation waits for n */
      vstore((real *)s->h + cell, h);
      if (s->y) store_user(user_row(s->y, s->y_at, s->y_row, m0 + m), at, h, s->hidden);
      if (s->gates) vstore((real *)s->gates + (m0 + m) * s->gates_row + at, n);
    }
}

FR_INLINE void gru_walk_panels(const int Q, const fr_forward *s) {
  const real *before = (const real *)s->h_prev;
  vec h[ROW_PANELS];
  FOR_PANELS(Q) h[q] = vload(before + q * VW);
  for (ptrdiff_t t = 0; t < s->rows; t++) {
    tile a;
    vec n[ROW_PANELS], z[ROW_PANELS];
    start_chain(1, Q, 3, 0, a, s, t, 0);
    x_chain(0, 1, Q, 3, 3 * VW, a, s, t, 0);
    FOR_PANELS(Q) {
      n[q] = a[0][3 * q];
      a[0][3 * q] = vload((const real *)s->bias_n + q * VW);
    }
    row_chain(Q * 3, a[0], h[0], before, (const real *)s->wh, s->hidden);
    FOR_PANELS(Q) {
      n[q] = vfma(v_sigmoid(a[0][3 * q + 1]), a[0][3 * q], n[q]);
      z[q] = v_sigmoid(a[0][3 * q + 2]);
    }
    FOR_PANELS(Q) {
      h[q] = vfma(vsub(vset1(1), z[q]), v_tanh(n[q]), vmul(z[q], h[q]));
      store_h(s, t, q, h[q]);
    }
    before = (const real *)s->h + t * s->pitch;
  }
}

/* dn = dh (1 - z), dz = dh (h' - n), dr = dn m, dm = dn r (dn past tanh), dh' = dh z + U' (...) */
FR_INLINE void gru_backward_tile(const int M, const int Q, const int NV, const fr_backward *s,
                                 ptrdiff_t m0, ptrdiff_t p) {
  stack_tile dh_;
  dh_tile(M, Q, NV, 3, 1, &dh_, s, m0, p);
  for (int m = 0; m < M; m++)
    for (int v = 0; v < Q * NV; v++) {
      const ptrdiff_t at = (p * VPLAIN + v) * VW, cell = (m0 + m) * s->pitch + at;
      if (at >= s->hidden) break;
      real *row = (real *)s->gates + (m0 + m) * s->gates_row + at;
      const vec n = vload(row), r = vload(row + s->pitch);
      const vec z = vload(row + 2 * s->pitch), mm = vload(row + 3 * s->pitch);
      const vec dh = dh_.v[m][v];
      const vec dn = vmul(vmul(dh, vsub(vset1(1), z)), v_dtanh(n));
      const vec dz = vmul(dh, vsub(vload((const real *)s->h_prev + cell), n));
      const vec dr = vmul(dn, mm);
      vstore(row, dn);
      vstore(row + s->pitch, vmul(dr, v_dsigmoid(r)));
      vstore(row + 2 * s->pitch, vmul(dz, v_dsigmoid(z)));
      vstore(row + 3 * s->pitch, vmul(dn, r));
      vstore((real *)s->dh + cell, vmul(dh, z));
    }
}

#define CALL(M, Q) gru_forward_tile(0, M, Q, s, m0, p)
TILES(gru_forward_tiles, 3, fr_forward, CALL)
#undef CALL
static void gru_forward(const fr_forward *s) {
  walk_tiles(gru_forward_tiles, 3, s, s->rows, s->panel0, s->panel1, ALL_WIDE, s->down);
}
#if FR_BITS == 32
#define CALL(M, Q) gru_forward_tile(1, M, Q, s, m0, p)
TILES(gru_half_tiles, 3, fr_forward, CALL)
#undef CALL
static void gru_forward_half(const fr_forward *s) {
  walk_tiles(gru_half_tiles, 3, s, s->rows, s->panel0, s->panel1, ALL_WIDE, s->down);
}
#endif
#define CALL(Q) gru_walk_panels(Q, s)
WALK(gru_walk)
#undef CALL
#define CALL(M, Q, NV) gru_backward_tile(M, Q, NV, s, m0, p)
PLAIN_TILES(gru_backward_tiles, fr_backward, CALL)
#undef CALL
static void gru_backward(const fr_backward *s) {
  walk_tiles(gru_backward_tiles, VPLAIN, s, s->rows, s->panel0, s->panel1, s->hidden, s->down);
}
