/* Element-wise programs: one function for each operation, which the walk over tiles calls for each
 * instruction; sums over units; rows that are added. */

typedef struct {
  const fr_elementwise *of;
  ptrdiff_t m0, u0, rows, units; /* the rows and units of a tile */
  ptrdiff_t distance;            /* bytes from register to register */
} machine_tile;

typedef struct {
  real *at;                      /* the tile's first number */
  ptrdiff_t row;
} operand;

FR_INLINE operand operand_of(const machine_tile *t, int32_t place) {
  const fr_elementwise *s = t->of;
  const ptrdiff_t r = place - s->registers;
  if (r >= 0) return (operand){(real *)((char *)s->scratch + r * t->distance), t->units};
  const fr_place *p = s->places + place;
  return (operand){(real *)p->base + t->m0 * p->row + t->u0, p->row};
}

typedef vec elementary(vec a, vec b, vec c, vec e);

/* d = one(a, b, c, e) over a tile; only the first `count` operands are there. */
FR_INLINE void each(elementary *one, const int count, const machine_tile *t,
                    const fr_instruction *i) {
  const operand none = {NULL, 0}, d = operand_of(t, i->d), a = operand_of(t, i->a);
  const operand b = count > 1 ? operand_of(t, i->b) : none;
  const operand c = count > 2 ? operand_of(t, i->c) : none;
  const operand e = count > 3 ? operand_of(t, i->e) : none;
  const ptrdiff_t rows = t->rows, units = t->units;
  const vec zero = vset1(0);
  for (ptrdiff_t m = 0; m < rows; m++)
    for (ptrdiff_t u = 0; u < units; u += VW)
      vstore(d.at + m * d.row + u,
             one(vload(a.at + m * a.row + u), count > 1 ? vload(b.at + m * b.row + u) : zero,
                 count > 2 ? vload(c.at + m * c.row + u) : zero,
                 count > 3 ? vload(e.at + m * e.row + u) : zero));
}

/* vmin and vmax return b where a is NaN. */
FR_INLINE vec v_least(vec a, vec b) { return vifle(a, a, vmin(a, b), a); }
FR_INLINE vec v_most(vec a, vec b) { return vifle(a, a, vmax(a, b), a); }

/* What each operation has: its operands, and its result. */
#define FOR_OPERATIONS(DO)                      \
  DO(FR_COPY, 1, a)                             \
  DO(FR_ADD, 2, vadd(a, b))                     \
  DO(FR_SUB, 2, vsub(a, b))                     \
  DO(FR_MUL, 2, vmul(a, b))                     \
  DO(FR_DIV, 2, vdiv(a, b))                     \
  DO(FR_FMA, 3, vfma(a, b, c))                  \
  DO(FR_FNMA, 3, vfnma(a, b, c))                \
  DO(FR_MIN, 2, v_least(a, b))                  \
  DO(FR_MAX, 2, v_most(a, b))                   \
  DO(FR_ABS, 1, vabs(a))                        \
  DO(FR_RELU, 1, vmax(vset1(0), a))             \
  DO(FR_LESS, 4, vifless(a, b, c, e))           \
  DO(FR_LESS_EQUAL, 4, vifle(a, b, c, e))       \
  DO(FR_SIGMOID, 1, v_sigmoid(a))               \
  DO(FR_TANH, 1, v_tanh(a))                     \
  DO(FR_EXP, 1, v_exp(a))                       \
  DO(FR_LOG, 1, v_log(a))                       \
  DO(FR_SQRT, 1, vsqrt(a))                      \
  DO(FR_SOFTPLUS, 1, v_softplus(a))             \
  DO(FR_DSIGMOID, 2, vmul(a, v_dsigmoid(b)))    \
  DO(FR_DTANH, 2, vmul(a, v_dtanh(b)))
#define OPERATION_(op, count, result)                                                \
  FR_INLINE vec op##_one(vec a, vec b, vec c, vec e) {                               \
    return (void)a, (void)b, (void)c, (void)e, result;                               \
  }                                                                                  \
  FR_ONE_COPY static void op##_each(const machine_tile *t, const fr_instruction *i) { \
    each(op##_one, count, t, i);                                                     \
  }
FOR_OPERATIONS(OPERATION_)

/* The first number of a's row is where the place begins, wherever the tile does. */
FR_ONE_COPY static void FR_SPLAT_each(const machine_tile *t, const fr_instruction *i) {
  const operand d = operand_of(t, i->d), a = operand_of(t, i->a);
  const real *first = a.at - (i->a < t->of->registers ? t->u0 : 0);
  for (ptrdiff_t m = 0; m < t->rows; m++) {
    const vec x = vset1(first[m * a.row]);
    for (ptrdiff_t u = 0; u < t->units; u += VW) vstore(d.at + m * d.row + u, x);
  }
}

typedef void operation(const machine_tile *t, const fr_instruction *i);
#define OPERATION_ENTRY_(op, count, result) [op] = op##_each,
static operation *const operations[FR_OPERATIONS] = {FOR_OPERATIONS(OPERATION_ENTRY_)
                                                     [FR_SPLAT] = FR_SPLAT_each};

/* Registers lie no further apart than a tile needs, and no whole part of 4 KB: small ones would all
 * take the same few lines of the cache. */
FR_INLINE ptrdiff_t register_distance(ptrdiff_t numbers) {
  const ptrdiff_t bytes = ((numbers * (ptrdiff_t)sizeof(real) + 63) & ~63) + 64;
  return bytes < FR_REGISTER_BYTES ? bytes : FR_REGISTER_BYTES;
}

static void elementwise(const fr_elementwise *s) {
  const ptrdiff_t most = s->tile < VW ? VW : s->tile / VW * VW, width = s->u1 - s->u0;
  if (width <= 0) return;
  const ptrdiff_t wide = width < most ? width : most, high = most / wide;
  machine_tile t = {.of = s,
                    .distance = register_distance(wide * (s->rows < high ? s->rows : high))};
  assert(most * (ptrdiff_t)sizeof(real) <= FR_REGISTER_BYTES);
  const fr_instruction *const end = s->code + s->count;
  for (t.u0 = s->u0; t.u0 < s->u1; t.u0 += t.units) {
    t.units = s->u1 - t.u0 < wide ? s->u1 - t.u0 : wide;
    for (t.m0 = 0; t.m0 < s->rows; t.m0 += t.rows) {
      t.rows = s->rows - t.m0 < high ? s->rows - t.m0 : high;
      for (const fr_instruction *i = s->code; i < end; i++) operations[i->op](&t, i);
    }
  }
}

/* Number u goes to lane u % SUM_LANES, lanes are added in one order: the same bits everywhere. */
enum { SUM_LANES = 64 / sizeof(real), SUM_VECTORS = SUM_LANES / VW };

FR_ONE_COPY static real sum_of(const real *x, ptrdiff_t n) {
  vec sum[SUM_VECTORS];
  FR_UNROLL(16) for (int v = 0; v < SUM_VECTORS; v++) sum[v] = vset1(0);
  for (; n >= SUM_LANES; n -= SUM_LANES, x += SUM_LANES)
    FR_UNROLL(16) for (int v = 0; v < SUM_VECTORS; v++) sum[v] = vadd(sum[v], vload(x + v * VW));
  FR_UNROLL(16) for (int v = 0; v < SUM_VECTORS; v++) {
    const ptrdiff_t left = n - v * VW;
    if (left > 0) sum[v] = vadd(sum[v], vloadn(x + v * VW, left < VW ? left : VW));
  }
  real lane[SUM_LANES];
  FR_UNROLL(16) for (int v = 0; v < SUM_VECTORS; v++) vstore(lane + v * VW, sum[v]);
  FR_UNROLL(4) for (int half = SUM_LANES / 2; half > 0; half /= 2)
    FR_UNROLL(8) for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

static void sum_units(void *dst, ptrdiff_t dst_row, const void *src, ptrdiff_t src_row,
                      ptrdiff_t rows, ptrdiff_t n) {
  for (ptrdiff_t m = 0; m < rows; m++)
    ((real *)dst)[m * dst_row] = sum_of((const real *)src + m * src_row, n);
}

static void add_rows(void *dst, ptrdiff_t dst_row, const void *src, ptrdiff_t src_row,
                     const int32_t *at, ptrdiff_t rows, ptrdiff_t n) {
  for (ptrdiff_t m = 0; m < rows; m++) {
    real *d = (real *)dst + m * dst_row;
    const real *a = (const real *)src + (at ? at[m] : m) * src_row;
    ptrdiff_t u = 0;
    for (; u + VW <= n; u += VW) vstore(d + u, vadd(vload(d + u), vload(a + u)));
    if (u < n) vstoren(d + u, vadd(vloadn(d + u, n - u), vloadn(a + u, n - u)), n - u);
  }
}
