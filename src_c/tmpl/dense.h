/* The pieces of training around a recurrent stack: softmax cross-entropy, the gradient's norm,
 * the optimisers. Sums over a row run in the order of the lanes, rows in ascending order. */

FR_INLINE double lane_sum(vec a) {
  real lane[VW];
  double sum = 0;
  vstore(lane, a);
  for (int i = 0; i < VW; i++) sum += (double)lane[i];
  return sum;
}

static double softmax_loss(void *grad, const void *logits, const int32_t *target,
                           const double *weights, ptrdiff_t rows, ptrdiff_t n, double scale) {
  double loss = 0;
  const ptrdiff_t whole = n / VW * VW;
  for (ptrdiff_t r = 0; r < rows; r++) {
    const real *x = (const real *)logits + r * n;
    real *g = grad ? (real *)grad + r * n : NULL;
    const double weight = weights ? weights[r] : 1;
    if (weight == 0) { /* whatever stands there */
      if (g) memset(g, 0, (size_t)n * sizeof(real));
      continue;
    }
    const double at_target = (double)x[target[r]]; /* before g, which may be x, overwrites it */
    /* NaN is passed over here: it comes back through the sum */
    vec most = vset1(-(real)__builtin_inf());
    for (ptrdiff_t i = 0; i < whole; i += VW) most = vmax(vload(x + i), most);
    real lane[VW], top = -(real)__builtin_inf();
    vstore(lane, most);
    for (int i = 0; i < VW; i++) top = lane[i] > top ? lane[i] : top;
    for (ptrdiff_t i = whole; i < n; i++) top = x[i] > top ? x[i] : top;
    const vec shift = vset1(top);
    vec sum = vset1(0);
    double tail = 0;
    for (ptrdiff_t i = 0; i < whole; i += VW) {
      const vec e = v_exp_negative(vsub(vload(x + i), shift));
      sum = vadd(sum, e);
      if (g) vstore(g + i, e);
    }
    if (whole < n) {
      real part[VW];
      vstore(part, v_exp_negative(vsub(vloadn(x + whole, n - whole), shift)));
      for (ptrdiff_t i = whole; i < n; i++) {
        tail += (double)part[i - whole];
        if (g) g[i] = part[i - whole];
      }
    }
    const double total = lane_sum(sum) + tail;
    loss += weight * (__builtin_log(total) + (double)top - at_target);
    if (!g) continue;
    const double share = weight * scale;
    const vec factor = vset1((real)(share / total));
    for (ptrdiff_t i = 0; i < whole; i += VW) vstore(g + i, vmul(vload(g + i), factor));
    for (ptrdiff_t i = whole; i < n; i++) g[i] *= (real)(share / total);
    g[target[r]] -= (real)share;
  }
  return loss;
}

/* x between -limit and limit; NaN stays NaN. */
FR_INLINE vec limited(vec x, double limit) {
  return vmin(vset1((real)limit), vmax(vset1((real)-limit), x));
}

static double sum_squares(const void *x_, ptrdiff_t n, double limit) {
  const real *x = (const real *)x_;
  double sum = 0;
  while (n > 0) { /* blocks: float32 sums of 16 terms a lane, double beyond */
    const ptrdiff_t block = n < 64 * VW ? n : 64 * VW;
    vec a[4] = {vset1(0), vset1(0), vset1(0), vset1(0)};
    ptrdiff_t i = 0;
    for (; i + VW <= block; i += VW) {
      const vec v = limited(vload(x + i), limit);
      a[i / VW % 4] = vfma(v, v, a[i / VW % 4]);
    }
    if (i < block) {
      const vec v = limited(vloadn(x + i, block - i), limit);
      a[0] = vfma(v, v, a[0]);
    }
    sum += lane_sum(vadd(vadd(a[0], a[1]), vadd(a[2], a[3])));
    x += block;
    n -= block;
  }
  return sum;
}

/* Each optimiser's step on one vector: from parameters and gradient to new parameters, moving m and
 * v (NULL where it keeps none). The equations stand at fr_update. */

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
  const vec g = vmul(limited(load((const real *)s->grad + i, n), s->limit),
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

static void activate(void *y_, const void *x_, ptrdiff_t n, int op) {
  real *y = (real *)y_;
  const real *x = (const real *)x_;
  for (ptrdiff_t i = 0; i < n; i += VW) {
    const ptrdiff_t left = n - i < VW ? n - i : VW;
    const vec a = vloadn(x + i, left);
    vstoren(y + i, op == 0 ? v_sigmoid(a) : op == 1 ? v_tanh(a) : v_exp_negative(a), left);
  }
}
