/* One row over many steps. What takes time is waiting: a step waits for h of the step before. So all
 * of a step is in one function without calls: c and the first lanes of h stay in registers, and the
 * other lanes come back from memory while the first are multiplied. W_hh is packed k-major (k,
 * panels, vectors * lanes), one stream for all panels. The bits are those of the tiles. */

enum { ROW_PANELS = 3 }; /* at most: with more, the weights leave L1, and the sums the registers */
enum { ROW_LANES = VW < 4 ? VW : 4 };

#define FOR_PANELS(Q) FR_UNROLL(4) for (int q = 0; q < Q; q++)

FR_INLINE vec v_lane(vec a, const int k) {
#if VW > 1
  return vset1(a[k]);
#else
  return k ? vset1(0) : a;
#endif
}

/* acc[v] += sum over k of h[k] * w[k][v]; h0 has the first lanes of h. */
FR_INLINE void row_chain(const int V, vec *acc, vec h0, const real *h, const real *w, ptrdiff_t k) {
#define ONE_K(k, a)                                                                                \
  {                                                                                                \
    const vec hk = a;                                                                              \
    FR_UNROLL(12) for (int v = 0; v < V; v++)                                                      \
      vadd_product(&acc[v], hk, vload(w + ((k) * V + v) * VW));                                    \
  }
  if (k >= ROW_LANES) {
    FR_UNROLL(4) for (int i = 0; i < ROW_LANES; i++) ONE_K(i, v_lane(h0, i))
    h += ROW_LANES;
    w += ROW_LANES * V * VW;
    k -= ROW_LANES;
  }
  for (; k >= 4; k -= 4, h += 4, w += 4 * V * VW) {
    ONE_K(0, vset1(h[0])) ONE_K(1, vset1(h[1])) ONE_K(2, vset1(h[2])) ONE_K(3, vset1(h[3]))
  }
  for (; k > 0; k--, h++, w += V * VW) ONE_K(0, vset1(h[0]))
#undef ONE_K
}

/* h of vector v of step t, and y if it is wanted; there may be vectors that no unit has. */
FR_INLINE void store_h(const fr_forward *s, ptrdiff_t t, ptrdiff_t v, vec h) {
  const ptrdiff_t at = v * VW;
  if (at >= s->hidden) return;
  vstore((real *)s->h + t * s->pitch + at, h);
  if (s->y) store_user(user_row(s->y, NULL, s->y_row, t), at, h, s->hidden);
}

/* `name`, a function that is CALL(Q) for the panels of s. */
#define WALK(name)                                                       \
  FR_ONE_COPY static void name##_1(const fr_forward *s) { CALL(1); }     \
  FR_ONE_COPY static void name##_2(const fr_forward *s) { CALL(2); }     \
  FR_ONE_COPY static void name##_3(const fr_forward *s) { CALL(3); }     \
  static void name(const fr_forward *s) {                                \
    if (s->panel1 == 1) name##_1(s);                                     \
    if (s->panel1 == 2) name##_2(s);                                     \
    if (s->panel1 == 3) name##_3(s);                                     \
  }
