/* Softmax cross-entropy. The sum over a row runs lane by lane, rows come in ascending order. */

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
    if (weight == 0) { /* whatever the logits are */
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
