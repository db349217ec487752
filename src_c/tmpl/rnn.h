/* Vanilla RNN (Elman 1990): h = phi(W_ih x + b + W_hh h'), phi one of tanh, relu, sigmoid. */

enum { TANH, RELU, SIGMOID };

/* relu keeps NaN: vmax returns its second operand then. The branch is always the same one. */
FR_INLINE vec phi(int kind, vec a) {
  return kind == TANH ? v_tanh(a) : kind == SIGMOID ? v_sigmoid(a) : vmax(vset1(0), a);
}
FR_INLINE vec dphi(int kind, vec y) {
  return kind == TANH      ? v_dtanh(y)
         : kind == SIGMOID ? v_dsigmoid(y)
                           : vifless(vset1(0), y, vset1(1), vset1(0));
}

FR_INLINE void rnn_forward_tile(const int half, int kind, const int M, const int Q, const int NV,
                                const fr_forward *s, ptrdiff_t m0, ptrdiff_t p) {
  tile acc;
  start_chain(M, Q, NV, 1, acc, s, m0, p);
  x_chain(half, M, Q, NV, GN, acc, s, m0, p);
  h_chain(half, M, Q, NV, GN, acc, s, m0, p);
  stack_tile a;
  FOR_TILE(M, Q * NV) a.v[m][v] = acc[m][v];
  for (int m = 0; m < M; m++)
    for (int v = 0; v < Q * NV; v++) {
      const ptrdiff_t at = (p * VPLAIN + v) * VW;
      if (at >= s->hidden) break;
      const vec h = phi(kind, a.v[m][v]);
      vstore((real *)s->h + (m0 + m) * s->pitch + at, h);
      if (s->y) store_user(user_row(s->y, s->y_at, s->y_row, m0 + m), at, h, s->hidden);
    }
}

FR_INLINE void rnn_walk_panels(const int kind, const int Q, const fr_forward *s) {
  const real *before = (const real *)s->h_prev;
  vec h0 = vload(before);
  for (ptrdiff_t t = 0; t < s->rows; t++) {
    tile a;
    start_chain(1, Q, VPLAIN, 1, a, s, t, 0);
    x_chain(0, 1, Q, VPLAIN, GN, a, s, t, 0);
    row_chain(Q * VPLAIN, a[0], h0, before, (const real *)s->wh, s->hidden);
    FR_UNROLL(12) for (int v = 0; v < Q * VPLAIN; v++) {
      const vec h = phi(kind, a[0][v]);
      store_h(s, t, v, h);
      if (v == 0) h0 = h;
    }
    before = (const real *)s->h + t * s->pitch;
  }
}

/* da = phi'(h) dh */
FR_INLINE void rnn_backward_tile(int kind, const int M, const int Q, const int NV,
                                 const fr_backward *s, ptrdiff_t m0, ptrdiff_t p) {
  stack_tile dh;
  dh_tile(M, Q, NV, 1, 0, &dh, s, m0, p);
  for (int m = 0; m < M; m++)
    for (int v = 0; v < Q * NV; v++) {
      const ptrdiff_t at = (p * VPLAIN + v) * VW, cell = (m0 + m) * s->pitch + at;
      if (at >= s->hidden) break;
      const vec h = vload((const real *)s->h + cell);
      vstore((real *)s->gates + (m0 + m) * s->gates_row + at, vmul(dphi(kind, h), dh.v[m][v]));
      vstore((real *)s->dh + cell, vset1(0));
    }
}

/* One set of tiles for the three of them: it is the tiles that take space. */
typedef struct {
  const fr_forward *step;
  int kind;
} rnn_step;
typedef struct {
  const fr_backward *step;
  int kind;
} rnn_step_back;

#define CALL(M, Q, NV) rnn_forward_tile(0, s->kind, M, Q, NV, s->step, m0, p)
PLAIN_TILES(rnn_forward_tiles, rnn_step, CALL)
#undef CALL
#define CALL(M, Q, NV) rnn_backward_tile(s->kind, M, Q, NV, s->step, m0, p)
PLAIN_TILES(rnn_backward_tiles, rnn_step_back, CALL)
#undef CALL
#define RNN_WALK(tiles, type, s, kind, columns)                                      \
  {                                                                                  \
    const type step = {s, kind};                                                     \
    walk_tiles(tiles, VPLAIN, &step, s->rows, s->panel0, s->panel1, columns, s->down); \
  }
#define RNN_KIND(name, kind)                                                         \
  static void name##_forward(const fr_forward *s)                                    \
      RNN_WALK(rnn_forward_tiles, rnn_step, s, kind, s->hidden)                      \
  static void name##_backward(const fr_backward *s)                                  \
      RNN_WALK(rnn_backward_tiles, rnn_step_back, s, kind, s->hidden)
#define CALL(Q) rnn_walk_panels(TANH, Q, s)
WALK(rnn_tanh_walk)
#undef CALL
#define CALL(Q) rnn_walk_panels(RELU, Q, s)
WALK(rnn_relu_walk)
#undef CALL
#define CALL(Q) rnn_walk_panels(SIGMOID, Q, s)
WALK(rnn_sigmoid_walk)
#undef CALL
RNN_KIND(rnn_tanh, TANH)
RNN_KIND(rnn_relu, RELU)
RNN_KIND(rnn_sigmoid, SIGMOID)

#if FR_BITS == 32
#define CALL(M, Q) rnn_forward_tile(1, s->kind, M, Q, VPLAIN, s->step, m0, p)
TILES(rnn_half_tiles, VPLAIN, rnn_step, CALL)
#undef CALL
#define RNN_HALF(name, kind) \
  static void name##_forward_half(const fr_forward *s)                               \
      RNN_WALK(rnn_half_tiles, rnn_step, s, kind, ALL_WIDE)
RNN_HALF(rnn_tanh, TANH)
RNN_HALF(rnn_relu, RELU)
RNN_HALF(rnn_sigmoid, SIGMOID)
#endif
