/* The pieces of training around a recurrent stack: softmax cross-entropy, the gradient's norm,
 * Adam. Sums over a row run in the order of the lanes, rows in ascending order. */

FR_INLINE double lane_sum(vec a) {
  real lane[VW];
  double sum = 0;
  vstore(lane, a);
  for (int i = 0; i < VW; i++) sum += (double)lane[i];
  return sum;
}

static double softmax_loss(void *grad, const void *logits, const int32_t *target, ptrdiff_t rows,
                           ptrdiff_t n, double scale) {
  double loss = 0;
  const ptrdiff_t whole = n / VW * VW;
  for (ptrdiff_t r = 0; r < rows; r++) {
    const real *x = (const real *)logits + r * n;
    real *g = grad ? (real *)grad + r * n : NULL;
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
    loss += __builtin_log(total) + (double)top - at_target;
    if (!g) continue;
    const vec factor = vset1((real)(scale / total));
    for (ptrdiff_t i = 0; i < whole; i += VW) vstore(g + i, vmul(vload(g + i), factor));
    for (ptrdiff_t i = whole; i < n; i++) g[i] *= (real)(scale / total);
    g[target[r]] -= (real)scale;
  }
  return loss;
}

static double sum_squares(const void *x_, ptrdiff_t n) {
  const real *x = (const real *)x_;
  double sum = 0;
  while (n > 0) { /* blocks: float32 sums of 16 terms a lane, double beyond */
    const ptrdiff_t block = n < 64 * VW ? n : 64 * VW;
    vec a[4] = {vset1(0), vset1(0), vset1(0), vset1(0)};
    ptrdiff_t i = 0;
    for (; i + VW <= block; i += VW) {
      const vec v = vload(x + i);
      a[i / VW % 4] = vfma(v, v, a[i / VW % 4]);
    }
    if (i < block) {
      const vec v = vloadn(x + i, block - i);
      a[0] = vfma(v, v, a[0]);
    }
    sum += lane_sum(vadd(vadd(a[0], a[1]), vadd(a[2], a[3])));
    x += block;
    n -= block;
  }
  return sum;
}

FR_INLINE vec adam_one(vec *p, vec *m, vec *v, vec g, const fr_adam *s) {
  const vec b1 = vset1((real)s->beta1), c1 = vset1((real)(1 - s->beta1));
  const vec b2 = vset1((real)s->beta2), c2 = vset1((real)(1 - s->beta2));
  g = vmul(g, vset1((real)s->grad_scale));
  *m = vfma(b1, *m, vmul(c1, g));
  *v = vfma(b2, *v, vmul(vmul(c2, g), g));
  const vec step = vdiv(vmul(vset1((real)s->step_size), *m),
                        vadd(vsqrt(*v), vset1((real)s->eps)));
  return vsub(vmul(*p, vset1((real)(1 - s->decay))), step);
}

static void adam(const fr_adam *s, ptrdiff_t begin, ptrdiff_t end) {
  real *param = (real *)s->param, *m = (real *)s->m, *v = (real *)s->v;
  const real *grad = (const real *)s->grad;
  ptrdiff_t i = begin;
  for (; i + VW <= end; i += VW) {
    vec p = vload(param + i), a = vload(m + i), b = vload(v + i);
    p = adam_one(&p, &a, &b, vload(grad + i), s);
    vstore(param + i, p);
    vstore(m + i, a);
    vstore(v + i, b);
  }
  if (i < end) {
    vec p = vloadn(param + i, end - i), a = vloadn(m + i, end - i), b = vloadn(v + i, end - i);
    p = adam_one(&p, &a, &b, vloadn(grad + i, end - i), s);
    vstoren(param + i, p, end - i);
    vstoren(m + i, a, end - i);
    vstoren(v + i, b, end - i);
  }
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
