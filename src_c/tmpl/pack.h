/* Packing of weights and biases into panels. */

static void pack_plain(void *dst, const void *src, ptrdiff_t k, ptrdiff_t n, int gates,
                       const int *order, ptrdiff_t panel0, ptrdiff_t panel1) {
  const ptrdiff_t run = k / gates;
  for (ptrdiff_t p = panel0; p < panel1; p++)
    for (int g = 0; g < gates; g++)
      for (ptrdiff_t i = 0; i < run; i++) {
        const real *row = (const real *)src + (order[g] * run + i) * n;
        pack_panel((real *)dst + (p * k + g * run + i) * GN, &row, p * GN, 1, n - p * GN);
      }
}

/* r[i][j] and r[j][i] change places: log2(VW) times, the rows of both halves are zipped. */
FR_INLINE void transpose(vec *r) {
  vec t[VW];
  FR_UNROLL(4) for (int stage = 1; stage < VW; stage *= 2) {
    FR_UNROLL(8) for (int i = 0; i < VW / 2; i++) {
      t[2 * i] = vzip_low(r[i], r[i + VW / 2]);
      t[2 * i + 1] = vzip_high(r[i], r[i + VW / 2]);
    }
    FR_UNROLL(16) for (int i = 0; i < VW; i++) r[i] = t[i];
  }
}

/* One vector column of a panel from VW rows of src, zeros in the lanes beyond `lanes`. */
static void pack_lanes(real *dst, ptrdiff_t width, const real *src, ptrdiff_t k, ptrdiff_t lanes) {
  for (ptrdiff_t k0 = 0; k0 < k; k0 += VW) {
    const ptrdiff_t n = k - k0 < VW ? k - k0 : VW;
    vec r[VW];
    FR_UNROLL(16) for (int u = 0; u < VW; u++) {
      const real *from = src + u * k + k0;
      r[u] = u >= lanes ? vset1(0) : n == VW ? vload(from) : vloadn(from, n);
    }
    transpose(r);
    FR_UNROLL(16) for (int i = 0; i < VW; i++)
      if (i < n) vstore(dst + (k0 + i) * width, r[i]);
  }
}

static void pack_plain_t(void *dst, const void *src, ptrdiff_t k, ptrdiff_t n, ptrdiff_t panel0,
                         ptrdiff_t panel1) {
  for (ptrdiff_t j = panel0 * GN; j < panel1 * GN; j += VW)
    pack_lanes((real *)dst + j / GN * k * GN + j % GN, GN, (const real *)src + j * k, k, n - j);
}

static void pack_gates(void *dst, const void *src, ptrdiff_t k, ptrdiff_t h, int gates,
                       const int *order, ptrdiff_t panel0, ptrdiff_t panel1) {
  const ptrdiff_t width = gates * VW;
  for (ptrdiff_t p = panel0; p < panel1; p++)
    for (int v = 0; v < gates; v++)
      pack_lanes((real *)dst + p * k * width + v * VW, width,
                 (const real *)src + (order[v] * h + p * VW) * k, k, h - p * VW);
}

static void pack_slots(void *dst, const void *src, ptrdiff_t k, ptrdiff_t h, ptrdiff_t at,
                       ptrdiff_t v0, ptrdiff_t v1) {
  const ptrdiff_t vectors = (h + VW - 1) / VW;
  for (ptrdiff_t v = v0; v < v1; v++) {
    const ptrdiff_t u = v % vectors * VW, c = at + v;
    pack_lanes((real *)dst + c / VPLAIN * k * GN + c % VPLAIN * VW, GN,
               (const real *)src + (v / vectors * h + u) * k, k, h - u);
  }
}

static void pack_bias(void *start, void *bias_n, const void *b_ih, const void *b_hh, ptrdiff_t h,
                      ptrdiff_t pitch, const fr_cell_row *cell) {
  const real *x = (const real *)b_ih, *r = (const real *)b_hh;
  for (int s = 0; s < cell->gates; s++) {
    const int g = cell->order_x[s];
    for (ptrdiff_t u = 0; u < pitch; u++) {
      const real bx = x && u < h ? x[g * h + u] : 0, br = r && u < h ? r[g * h + u] : 0;
      ((real *)start)[s * pitch + u] = g == cell->apart ? bx : bx + br;
      if (g == cell->apart) ((real *)bias_n)[u] = br;
    }
  }
}
