/* Vanilla RNN (Elman 1990): h = phi(W_ih x + b + W_hh h'), phi one of tanh, relu, sigmoid. */

enum { TANH, RELU, SIGMOID };

/* relu keeps NaN: vmax returns its second operand then. */
FR_INLINE vec phi(const int kind, vec a) {
  return kind == TANH ? v_tanh(a) : kind == SIGMOID ? v_sigmoid(a) : vmax(vset1(0), a);
}
FR_INLINE vec dphi(const int kind, vec y) {
  return kind == TANH      ? v_dtanh(y)
         : kind == SIGMOID ? v_dsigmoid(y)
                           : vifless(vset1(0), y, vset1(1), vset1(0));
}

FR_INLINE void rnn_forward_tile(const int half, const int kind, const int M, const int Q,
                                const fr_forward *s, ptrdiff_t m0, ptrdiff_t p) {
  tile acc;
  start_chain(M, Q, VPLAIN, 1, acc, s, m0, p);
  x_chain(half, M, Q, VPLAIN, acc, s, m0, p);
  h_chain(half, M, Q, VPLAIN, acc, s, m0, p);
  stack_tile a;
  FOR_TILE(M, Q * VPLAIN) a.v[m][v] = acc[m][v];
  for (int m = 0; m < M; m++)
    for (int v = 0; v < Q * VPLAIN; v++) {
      const ptrdiff_t at = (p * VPLAIN + v) * VW;
      if (at >= s->hidden) break;
      const vec h = phi(kind, a.v[m][v]);
      vstore((real *)s->h + (m0 + m) * s->pitch + at, h);
      if (s->y) store_user((real *)s->y + (m0 + m) * s->y_row, at, h, s->hidden);
    }
}

/* da = phi'(h) dh */
FR_INLINE void rnn_backward_tile(const int kind, const int M, const int Q, const fr_backward *s,
                                 ptrdiff_t m0, ptrdiff_t p) {
  stack_tile dh;
  dh_tile(M, Q, 1, 0, &dh, s, m0, p);
  for (int m = 0; m < M; m++)
    for (int v = 0; v < Q * VPLAIN; v++) {
      const ptrdiff_t at = (p * VPLAIN + v) * VW, cell = (m0 + m) * s->pitch + at;
      if (at >= s->hidden) break;
      const vec h = vload((const real *)s->h + cell);
      vstore((real *)s->gates + (m0 + m) * s->gates_row + at, vmul(dphi(kind, h), dh.v[m][v]));
      vstore((real *)s->dh + cell, vset1(0));
    }
}

#define WALK(CALL) FOR_TILES(VPLAIN, s->rows, s->panel0, s->panel1, s->down, CALL)
#define RNN_KIND(name, kind)                                                             \
  static void name##_forward(const fr_forward *s) { WALK(RNN_FORWARD_##kind); }          \
  static void name##_backward(const fr_backward *s) { WALK(RNN_BACKWARD_##kind); }
#define RNN_FORWARD_TANH(M, Q, m, p) rnn_forward_tile(0, TANH, M, Q, s, m, p)
#define RNN_FORWARD_RELU(M, Q, m, p) rnn_forward_tile(0, RELU, M, Q, s, m, p)
#define RNN_FORWARD_SIGMOID(M, Q, m, p) rnn_forward_tile(0, SIGMOID, M, Q, s, m, p)
#define RNN_BACKWARD_TANH(M, Q, m, p) rnn_backward_tile(TANH, M, Q, s, m, p)
#define RNN_BACKWARD_RELU(M, Q, m, p) rnn_backward_tile(RELU, M, Q, s, m, p)
#define RNN_BACKWARD_SIGMOID(M, Q, m, p) rnn_backward_tile(SIGMOID, M, Q, s, m, p)
RNN_KIND(rnn_tanh, TANH)
RNN_KIND(rnn_relu, RELU)
RNN_KIND(rnn_sigmoid, SIGMOID)

#if FR_BITS == 32
#define RNN_HALF(name, kind) \
  static void name##_forward_half(const fr_forward *s) { WALK(RNN_HALF_##kind); }
#define RNN_HALF_TANH(M, Q, m, p) rnn_forward_tile(1, TANH, M, Q, s, m, p)
#define RNN_HALF_RELU(M, Q, m, p) rnn_forward_tile(1, RELU, M, Q, s, m, p)
#define RNN_HALF_SIGMOID(M, Q, m, p) rnn_forward_tile(1, SIGMOID, M, Q, s, m, p)
RNN_HALF(rnn_tanh, TANH)
RNN_HALF(rnn_relu, RELU)
RNN_HALF(rnn_sigmoid, SIGMOID)
#endif
#undef WALK
