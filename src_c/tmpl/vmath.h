/* exp, sigmoid and tanh on vectors; vlog.h has log and softplus.
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
#define EXP_BIAS 127
#define EXP_TINY -0x1.5d589ep+6f /* the first x whose e^x is a normal number */
#define EXP_HUGE 0x1.62e43p+6f   /* the first whose e^x is infinite */
#define SIGMOID_SHIFT 32
#define SIGMOID_SCALE 0x1p32f
#define SIGMOID_LOW -104.0f   /* 1 / e^-LOW is 0 */
#define SIGMOID_HIGH 60.0f    /* 1 + e^-HIGH is 1 */
#define TANH_LOW 0x1p-12f     /* tanh(x) is x below */
#define TANH_HIGH 32.0f       /* tanh(HIGH) is 1 */
#define LOG2_E 0x1.715476p+0f
#define LN2 0x1.62e43p-1f
#define LN2_HIGH 0x1.62e4p-1f /* 15 bits: n * LN2_HIGH is exact */
#define LN2_LOW 0x1.7f7d1cp-20f
static const real EXP_POLY[] = {0x1.6d117cp-10f, 0x1.120be2p-7f, 0x1.555518p-5f, 0x1.5554dcp-3f,
                                0.5f};
#else
#define EXP_MAGIC 6755399441056767.0 /* 1.5 * 2^52 + 1023 */
#define EXP_LOW -708.39
#define EXP_BIAS 1023
#define EXP_TINY -0x1.6232bdd7abcd2p+9
#define EXP_HUGE 0x1.62e42fefa39fp+9
#define SIGMOID_SHIFT 64
#define SIGMOID_SCALE 0x1p64
#define SIGMOID_LOW -746.0
#define SIGMOID_HIGH 600.0
#define TANH_LOW 0x1p-27
#define TANH_HIGH 32.0
#define LOG2_E 0x1.71547652b82fep+0
#define LN2 0x1.62e42fefa39efp-1
#define LN2_HIGH 0x1.62e42fefap-1 /* 37 bits */
#define LN2_LOW 0x1.cf79abc9e3b398p-40
static const real EXP_POLY[] = {
    0x1.1f7340dbc337ep-29, 0x1.af4e554377204p-26, 0x1.27e4db46cddd1p-22, 0x1.71de01fdbf9cap-19,
    0x1.a01a01a6e1e2ap-16, 0x1.a01a01abf85abp-13, 0x1.6c16c16c162c3p-10, 0x1.11111111100bep-7,
    0x1.5555555555556p-5,  0x1.5555555555557p-3,  0.5};
#endif
#define FR_COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* e^r - 1, which keeps its relative precision near 0. float32 takes the polynomial in two halves:
 * fewer operations wait for each other. */
FR_INLINE vec v_expm1(vec r) {
  const vec r2 = vmul(r, r);
#define C(i) vset1(EXP_POLY[i])
#if FR_BITS == 32
  const vec p = vfma(vfma(C(0), r, C(1)), r2, vfma(C(2), r, C(3)));
  return vfma(vmul(r2, r), p, vfma(r2, C(4), r));
#else
  vec p = C(0);
  FR_UNROLL(16) for (int i = 1; i < FR_COUNT(EXP_POLY); i++) p = vfma(p, r, C(i));
  return vfma(r2, p, r);
#endif
#undef C
}

/* e^(scale x) = 2^n (1 + p): returns p and *power = 2^(n + shift). scale is a power of two or its
 * negative. For |n + shift| within the exponents, or NaN. With `once` n ln(2) has one rounded
 * constant, which is n 2^-29 off (float64: n 2^-55). */
FR_INLINE vec v_exp_parts(vec x, const real scale, const int shift, const int once, vec *power) {
  const vec magic = vset1(EXP_MAGIC + shift);
  const vec t = vfma(x, vset1(scale * LOG2_E), magic);
  const vec n = vsub(t, magic), y = vmul(x, vset1(scale));
  *power = vshl(t);
  if (once) return v_expm1(vfnma(n, vset1(LN2), y));
  return v_expm1(vfnma(n, vset1(LN2_LOW), vfnma(n, vset1(LN2_HIGH), y)));
}

/* Clamped below: results under the smallest normal number stay there. For x <= 0 (softmax). */
FR_INLINE vec v_exp_negative(vec x) {
  vec power;
  const vec p = v_exp_parts(vmax(vset1(EXP_LOW), x), 1, 0, 0, &power);
  return vmul(vadd(p, vset1(1)), power);
}

/* For all x: infinite above the largest number, 0 below the smallest normal one. n is added to the
 * exponent: 2^n of the largest results is no number. The sum of bits may turn NaN into anything. */
FR_INLINE vec v_exp(vec x) {
  const vec inf = vset1((real)__builtin_inf());
  vec n; /* shifted to the exponent's bits */
  const vec p = v_exp_parts(x, 1, -EXP_BIAS, 0, &n), y = vadd_bits(vadd(p, vset1(1)), n);
  const vec most = vifless(x, vset1(EXP_HUGE), y, vadd(x, inf)); /* infinite, or NaN */
  return vifless(x, vset1(EXP_TINY), vset1(0), most);
}

/* About 1 / d, for normal d > 0, and with y a number that is multiplied by it: a guess within 5.06%
 * and a step of third order (e^3 is left of a relative error e; float64: two steps). A step of second
 * order has to follow. Where a division of 16 floats takes 16 cycles, all this takes 6 operations. */
FR_INLINE vec v_reciprocal(vec d, vec *y) {
  vec r = vguess(d);
  if (y) *y = vmul(*y, r);
  FR_UNROLL(2) for (int i = 0; i < FR_BITS / 32; i++) {
    const vec e = vfnma(d, r, vset1(1)), f = vfma(e, e, e);
    r = vfma(r, f, r);
    if (y) *y = vfma(*y, f, *y);
  }
  return r;
}

/* The last step of a function, ab + c, and what it is for x below `low` and above `high`. With masks
 * both come at the end, where they cost nothing; without, v_first has to limit x. NaN stays NaN. */
#ifdef VMASKS
FR_INLINE vec v_first(vec x, vec high) { return (void)high, x; }
FR_INLINE vec v_last(vec x, vec low, vec below, vec high, vec above, vec a, vec b, vec c) {
  return vfma_within(x, low, high, a, b, vifless(x, low, below, vifless(high, x, above, c)));
}
#else
FR_INLINE vec v_first(vec x, vec high) { return vmin(high, x); }
FR_INLINE vec v_last(vec x, vec low, vec below, vec high, vec above, vec a, vec b, vec c) {
  return (void)high, (void)above, vifless(x, low, below, vfma(a, b, c));
}
#endif

/* 1 / (1 + e^-x). The denominator is kept times 2^-SHIFT, so that it stays far from infinity down
 * to where the result is 0. */
FR_INLINE vec v_sigmoid(vec x) {
  const vec low = vset1(SIGMOID_LOW), high = vset1(SIGMOID_HIGH), one = vset1(1);
  vec power;
  const vec p = v_exp_parts(v_first(x, high), -1, -SIGMOID_SHIFT, 0, &power);
  const vec d = vfma(p, power, vadd(vset1(1 / SIGMOID_SCALE), power)), r = v_reciprocal(d, NULL);
  const vec e = vfnma(d, r, one), y = vmul(r, vset1(1 / SIGMOID_SCALE));
  return v_last(x, low, vset1(0), high, one, y, e, y);
}

/* a / d, a = 1 - exp(-2|x|) = (1 - 2^n) - 2^n p, which loses nothing, and d = 2 - a = (1 + 2^n) +
 * 2^n p, which is ready as early. What the quotient y leaves, a - y (2 - a), is the second step: the
 * rounding of d is in it. It would be flushed to zero for the smallest |x|, which are their tanh. */
FR_INLINE vec v_tanh(vec x) {
  const vec low = vset1(TANH_LOW), high = vset1(TANH_HIGH), one = vset1(1), two = vset1(2);
  const vec z = vabs(x);
  vec power;
  const vec p = v_exp_parts(v_first(z, high), -2, 0, 1, &power);
  const vec a = vfnma(p, power, vsub(one, power)), d = vfma(p, power, vadd(one, power));
  vec y = a;
  const vec r = v_reciprocal(d, &y), rest = vfma(y, a, vfnma(two, y, a));
  const vec small = vmul(vmul(z, two), vset1(0.5f)); /* a denormal counts as zero here, too */
  return vcopysign(v_last(z, low, small, high, one, rest, r, y), x); /* -0 stays -0 */
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
