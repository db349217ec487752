/* exp, sigmoid and tanh on vectors.
 *
 * Every function is a fixed order of fused multiply-adds, so all FMA instruction sets give the same
 * bits; there is no division. NaN goes through (vmin/vmax return their second operand
 * when either is NaN). docs/architecture.md has the measured errors;
 * tests/kernels/test_activations.py checks their limit.
 *
 * exp(x) = 2^n e^r, n = round(x / ln 2), |r| <= ln(2)/2. The rounding is an addition of MAGIC =
 * 1.5 * 2^mantissa + bias: the low bits of the sum are then n + bias, and a shift to the left
 * turns them into the float 2^n. The polynomial is a Chebyshev fit (mpmath.chebyfit, 60 digits) of
 * (e^r - 1 - r) / r^2 on |r| <= 0.347. */

#if FR_BITS == 32
#define EXP_MAGIC 12583039.0f /* 1.5 * 2^23 + 127 */
#define EXP_LOW -87.33f       /* e^LOW is just above the smallest normal number */
#define SIGMOID_SHIFT 32
#define SIGMOID_SCALE 0x1p32f
#define SIGMOID_LOW -60.0f    /* 1 + e^LOW is 1 */
#define SIGMOID_HIGH 104.0f   /* 1 / e^HIGH is 0 */
#define TANH_HIGH 32.0f       /* tanh(HIGH) is 1 */
#define LOG2_E 0x1.715476p+0f
#define LN2_HIGH 0x1.62e4p-1f /* 15 bits: n * LN2_HIGH is exact */
#define LN2_LOW 0x1.7f7d1cp-20f
static const real EXP_POLY[] = {0x1.6d117cp-10f, 0x1.120be2p-7f, 0x1.555518p-5f, 0x1.5554dcp-3f,
                                0.5f};
#else
#define EXP_MAGIC 6755399441056767.0 /* 1.5 * 2^52 + 1023 */
#define EXP_LOW -708.39
#define SIGMOID_SHIFT 64
#define SIGMOID_SCALE 0x1p64
#define SIGMOID_LOW -600.0
#define SIGMOID_HIGH 746.0
#define TANH_HIGH 32.0
#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefap-1 /* 37 bits */
#define LN2_LOW 0x1.cf79abc9e3b398p-40
static const real EXP_POLY[] = {
    0x1.1f7340dbc337ep-29, 0x1.af4e554377204p-26, 0x1.27e4db46cddd1p-22, 0x1.71de01fdbf9cap-19,
    0x1.a01a01a6e1e2ap-16, 0x1.a01a01abf85abp-13, 0x1.6c16c16c162c3p-10, 0x1.11111111100bep-7,
    0x1.5555555555556p-5,  0x1.5555555555557p-3,  0.5};
#endif
#define FR_COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

FR_INLINE vec v_poly(vec x, const real *c, const int n) {
  vec p = vset1(c[0]);
  FR_UNROLL(16) for (int i = 1; i < n; i++) p = vfma(p, x, vset1(c[i]));
  return p;
}

/* e^x = 2^n (1 + p): returns p = e^r - 1, which keeps its relative precision near 0, and *power =
 * 2^(n + shift). For |n + shift| within the exponents, or NaN. */
FR_INLINE vec v_exp_parts(vec x, const int shift, vec *power) {
  const vec magic = vset1(EXP_MAGIC + shift);
  const vec t = vfma(x, vset1(LOG2_E), magic);
  const vec n = vsub(t, magic);
  const vec r = vfnma(n, vset1(LN2_LOW), vfnma(n, vset1(LN2_HIGH), x));
  *power = vshl(t);
  return vfma(vmul(r, r), v_poly(r, EXP_POLY, FR_COUNT(EXP_POLY)), r);
}

/* Clamped below: results under the smallest normal number stay there. For x <= 0 (softmax). */
FR_INLINE vec v_exp_negative(vec x) {
  vec power;
  const vec p = v_exp_parts(vmax(vset1(EXP_LOW), x), 0, &power);
  return vmul(vadd(p, vset1(1)), power);
}

/* scale / d, for normal d > 0: a guess within 5.06% and two steps, of third order (e^3 is left of a
 * relative error e) and of second. 6 operations, where a division of 16 floats takes 16 cycles. */
FR_INLINE vec v_reciprocal(vec d, const real scale) {
  const vec one = vset1(1);
  vec r = vguess(d), e = vfnma(d, r, one);
  if (FR_BITS == 64) {
    r = vfma(r, vfma(e, e, e), r);
    e = vfnma(d, r, one);
  }
  r = vfma(r, vfma(e, e, e), r);
  e = vfnma(d, r, one);
  if (scale != 1) r = vmul(r, vset1(scale));
  return vfma(r, e, r);
}

/* 1 / (1 + e^-x). The denominator is kept times 2^-SHIFT, so that it stays far from infinity down
 * to where the result is 0. */
FR_INLINE vec v_sigmoid(vec x) {
  const vec z = vmax(vset1(SIGMOID_LOW), vmin(vset1(SIGMOID_HIGH), vsub(vset1(0), x)));
  const vec one = vset1(1 / SIGMOID_SCALE);
  vec power;
  const vec p = v_exp_parts(z, -SIGMOID_SHIFT, &power);
  return v_reciprocal(vfma(p, power, vadd(one, power)), 1 / SIGMOID_SCALE);
}

/* a / (2 - a), a = 1 - exp(-2|x|) = (1 - 2^n) - 2^n p, which loses nothing. What the quotient y
 * leaves, a - y (2 - a), is added at the end: the rounding of 2 - a is in it. */
FR_INLINE vec v_tanh(vec x) {
  const vec two = vset1(2);
  vec power;
  const vec p = v_exp_parts(vmul(vset1(-2), vmin(vset1(TANH_HIGH), vabs(x))), 0, &power);
  const vec a = vfnma(p, power, vsub(vset1(1), power));
  const vec r = v_reciprocal(vsub(two, a), 1), y = vmul(a, r);
  const vec rest = vfma(y, a, vfnma(two, y, a));
  return vcopysign(vfma(rest, r, y), x); /* -0 stays -0 */
}

/* The same three from a saved output y: derivatives with respect to the argument. */
FR_INLINE vec v_dsigmoid(vec y) { return vfnma(y, y, y); }
FR_INLINE vec v_dtanh(vec y) { return vfnma(y, y, vset1(1)); }

/* For tests: op 0 sigmoid, 1 tanh, 2 exp of x <= 0. */
static void activate(void *y_, const void *x_, ptrdiff_t n, int op) {
  real *y = (real *)y_;
  const real *x = (const real *)x_;
  for (ptrdiff_t i = 0; i < n; i += VW) {
    const ptrdiff_t left = n - i < VW ? n - i : VW;
    const vec a = vloadn(x + i, left);
    vstoren(y + i, op == 0 ? v_sigmoid(a) : op == 1 ? v_tanh(a) : v_exp_negative(a), left);
  }
}
