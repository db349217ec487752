/* The gradient's sum of squares, and the optimisers. */

/* x between -limit and limit; NaN stays NaN. */
FR_INLINE vec limited(vec x, double limit) {
  return vmin(vset1((real)limit), vmax(vset1((real)-limit), x));
}

/* Squares are added in double: a square of a float32 is exact there and neither overflows nor
 * underflows. Element i goes to lane i % SQUARE_LANES, and the lanes are added in one order, so that
 * every instruction set gives the same bits. A vector of doubles is as long as `vec`, or two lanes. */
enum { SQUARE_LANES = 32 };
#define WIDE_BYTES (VW * sizeof(real) < 16 ? 16 : VW * sizeof(real))
enum { WIDE = WIDE_BYTES / sizeof(double) };
typedef double wide __attribute__((vector_size(WIDE_BYTES)));
typedef real narrow __attribute__((vector_size(WIDE * sizeof(real))));

/* The sum of (scale * x)^2, x limited to +-limit; scale is a power of two. */
static double sum_squares(const void *x_, ptrdiff_t n, double limit, double scale) {
  const real *x = (const real *)x_;
  const int plain = limit == __builtin_inf() && (scale == 1 || FR_BITS == 32);
  wide sum[SQUARE_LANES / WIDE] = {{0}};
  for (; n > 0; x += SQUARE_LANES, n -= SQUARE_LANES) {
    const real *from = x;
    real part[SQUARE_LANES];
    if (n < SQUARE_LANES) {
      memset(part, 0, sizeof part);
      memcpy(part, x, (size_t)n * sizeof(real));
      from = part;
    }
    if (!plain) {
      FR_UNROLL(32) for (int i = 0; i < SQUARE_LANES; i += VW) {
        vec a = limited(vload(from + i), limit);
        if (FR_BITS == 64) a = vmul(a, vset1((real)scale));
        vstore(part + i, a);
      }
      from = part;
    }
    FR_UNROLL(16) for (int i = 0; i < SQUARE_LANES / WIDE; i++) {
      narrow a;
      memcpy(&a, from + i * WIDE, sizeof a);
      const wide b = __builtin_convertvector(a, wide);
      sum[i] += b * b;
    }
  }
  double lane[SQUARE_LANES];
  memcpy(lane, sum, sizeof lane);
  for (int half = SQUARE_LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  /* float32: scaled here. What underflows is nothing beside the float64 that asked for the scale. */
  return FR_BITS == 64 ? lane[0] : lane[0] * scale * scale;
}

/* Each optimiser's step on one vector: from parameters and gradient to new parameters, moving m and
 * v (NULL where it keeps none). The equations are at fr_update in fastrnn.h. */

FR_INLINE vec sgd_one(vec p, vec g, vec *m, vec *v, const fr_update *s) {
  (void)v;
  const vec momentum = vset1((real)s->beta1);
  g = vfma(vset1((real)s->decay), p, g);
  if (m) {
    *m = vfma(momentum, *m, g);
    g = s->nesterov ? vfma(momentum, *m, g) : *m;
  }
  return vfnma(vset1((real)s->step_size), g, p);
}

FR_INLINE vec rmsprop_one(vec p, vec g, vec *m, vec *v, const fr_update *s) {
  const vec b2 = vset1((real)s->beta2), c2 = vset1((real)(1 - s->beta2));
  g = vfma(vset1((real)s->decay), p, g);
  *v = vfma(b2, *v, vmul(vmul(c2, g), g));
  g = vdiv(g, vadd(vsqrt(*v), vset1((real)s->eps)));
  if (m) g = *m = vfma(vset1((real)s->beta1), *m, g);
  return vfnma(vset1((real)s->step_size), g, p);
}

FR_INLINE vec adam_one(vec p, vec g, vec *m, vec *v, const fr_update *s) {
  const vec b1 = vset1((real)s->beta1), c1 = vset1((real)(1 - s->beta1));
  const vec b2 = vset1((real)s->beta2), c2 = vset1((real)(1 - s->beta2));
  *m = vfma(b1, *m, vmul(c1, g));
  *v = vfma(b2, *v, vmul(vmul(c2, g), g));
  const vec step = vdiv(vmul(vset1((real)s->step_size), *m),
                        vadd(vsqrt(*v), vset1((real)s->eps)));
  return vsub(vmul(p, vset1((real)(1 - s->decay))), step);
}

typedef vec update_one(vec p, vec g, vec *m, vec *v, const fr_update *s);

/* n is VW, a constant, or what is left: fewer. */
FR_INLINE vec load(const real *p, ptrdiff_t n) { return n == VW ? vload(p) : vloadn(p, n); }
FR_INLINE void store(real *p, vec a, ptrdiff_t n) {
  if (n == VW) vstore(p, a);
  else vstoren(p, a, n);
}

FR_INLINE void update_at(update_one *one, const fr_update *s, ptrdiff_t i, ptrdiff_t n, int has_m,
                         int has_v) {
  real *param = (real *)s->param + i;
  const vec g = vmul(vmul(limited(load((const real *)s->grad + i, n), s->limit),
                          vset1((real)s->first_scale)),
                     vset1((real)s->grad_scale));
  vec m = has_m ? load((real *)s->m + i, n) : vset1(0);
  vec v = has_v ? load((real *)s->v + i, n) : vset1(0);
  store(param, one(load(param, n), g, has_m ? &m : NULL, has_v ? &v : NULL, s), n);
  if (has_m) store((real *)s->m + i, m, n);
  if (has_v) store((real *)s->v + i, v, n);
}

FR_INLINE void update(update_one *one, const fr_update *shared, ptrdiff_t begin, ptrdiff_t end,
                      int has_m, int has_v) {
  const fr_update s = *shared; /* which no store can change: its broadcasts leave the loop */
  ptrdiff_t i = begin;
  for (; i + VW <= end; i += VW) update_at(one, &s, i, VW, has_m, has_v);
  if (i < end) update_at(one, &s, i, end - i, has_m, has_v);
}

static void sgd(const fr_update *s, ptrdiff_t begin, ptrdiff_t end) {
  if (s->m) update(sgd_one, s, begin, end, 1, 0);
  else update(sgd_one, s, begin, end, 0, 0);
}

static void rmsprop(const fr_update *s, ptrdiff_t begin, ptrdiff_t end) {
  if (s->m) update(rmsprop_one, s, begin, end, 1, 1);
  else update(rmsprop_one, s, begin, end, 0, 1);
}

static void adam(const fr_update *s, ptrdiff_t begin, ptrdiff_t end) {
  update(adam_one, s, begin, end, 1, 1);
}
