/* exp, sigmoid and tanh on vectors.
 *
 * Every function is a fixed order of fused multiply-adds and one correctly rounded division, so all
 * FMA instruction sets give the same bits. NaN goes through (vmin/vmax return their second operand
 * when either is NaN). Measured errors stand in docs/architecture.md; tests/test_activations.py
 * holds them.
 *
 * exp(x) = 2^n e^r, n = round(x / ln 2), |r| <= ln(2)/2. The rounding is an addition of MAGIC =
 * 1.5 * 2^mantissa + bias: the low bits of the sum are then n + bias, and a shift to the left
 * turns them into the float 2^n. The polynomials are Chebyshev fits (mpmath.chebyfit, 60 digits):
 * (e^r - 1 - r) / r^2 on |r| <= 0.347, and (tanh(x)/x - 1) / x^2 over x^2 in [0, 0.625^2]. */

#if FR_BITS == 32
#define EXP_MAGIC 12583039.0f /* 1.5 * 2^23 + 127 */
#define EXP_LOW -87.33f       /* e^LOW is just above the smallest normal number */
#define EXP_HIGH 89.0f        /* e^HIGH is inf */
#define LOG2_E 0x1.715476p+0f
#define LN2_HIGH 0x1.62e4p-1f /* 15 bits: n * LN2_HIGH is exact */
#define LN2_LOW 0x1.7f7d1cp-20f
static const real EXP_POLY[] = {0x1.6d117cp-10f, 0x1.120be2p-7f, 0x1.555518p-5f, 0x1.5554dcp-3f,
                                0.5f};
static const real TANH_POLY[] = {-0x1.8f8de4p-8f, 0x1.58048ep-6f, -0x1.b9258ap-5f, 0x1.110e1cp-3f,
                                 -0x1.555552p-2f};
#else
#define EXP_MAGIC 6755399441056767.0 /* 1.5 * 2^52 + 1023 */
#define EXP_LOW -708.39
#define EXP_HIGH 709.9 /* likewise; not above 710.1, where n would be 1025 and the shift overflow */
#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefap-1 /* 37 bits */
#define LN2_LOW 0x1.cf79abc9e3b398p-40
static const real EXP_POLY[] = {
    0x1.1f7340dbc337ep-29, 0x1.af4e554377204p-26, 0x1.27e4db46cddd1p-22, 0x1.71de01fdbf9cap-19,
    0x1.a01a01a6e1e2ap-16, 0x1.a01a01abf85abp-13, 0x1.6c16c16c162c3p-10, 0x1.11111111100bep-7,
    0x1.5555555555556p-5,  0x1.5555555555557p-3,  0.5};
static const real TANH_POLY[] = {
    0x1.b33642a122cddp-18,  -0x1.05bbdae896297p-15, 0x1.8445870f6fe41p-14, -0x1.f243823c8c981p-13,
    0x1.3526e9ed54da1p-11,  -0x1.7d9f6f23e8682p-10, 0x1.d6d39ae3905e2p-9,  -0x1.226e3473dce5cp-7,
    0x1.664f487e0a749p-6,   -0x1.ba1ba1ba0f126p-5,  0x1.11111111110a8p-3,  -0x1.5555555555555p-2};
#endif
#define FR_COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

FR_INLINE vec v_poly(vec x, const real *c, const int n) {
  vec p = vset1(c[0]);
  FR_UNROLL(16) for (int i = 1; i < n; i++) p = vfma(p, x, vset1(c[i]));
  return p;
}

/* e^x for EXP_LOW <= x <= EXP_HIGH, or NaN. */
FR_INLINE vec v_exp_core(vec x) {
  const vec one = vset1(1), magic = vset1(EXP_MAGIC);
  const vec t = vfma(x, vset1(LOG2_E), magic);
  const vec n = vsub(t, magic);
  const vec r = vfnma(n, vset1(LN2_LOW), vfnma(n, vset1(LN2_HIGH), x));
  const vec q = vfma(v_poly(r, EXP_POLY, FR_COUNT(EXP_POLY)), r, one);
  return vmul(vfma(q, r, one), vshl(t));
}

/* Clamped below: results under the smallest normal number stay there. For x <= 0 (softmax). */
FR_INLINE vec v_exp_negative(vec x) { return v_exp_core(vmax(vset1(EXP_LOW), x)); }

FR_INLINE vec v_sigmoid(vec x) {
  const vec one = vset1(1);
  const vec z = vmax(vset1(EXP_LOW), vmin(vset1(EXP_HIGH), vsub(vset1(0), x)));
  return vdiv(one, vadd(one, v_exp_core(z)));
}

/* 1 - 2e / (1 + e), e = exp(-2|x|), where that loses nothing; an odd polynomial below 0.625. */
FR_INLINE vec v_tanh(vec x) {
  const vec one = vset1(1), a = vabs(x);
  const vec e = v_exp_core(vmax(vset1(EXP_LOW), vmul(vset1(-2), a)));
  const vec big = vsub(one, vdiv(vadd(e, e), vadd(one, e)));
  const vec s = vmul(x, x);
  const vec small = vfma(vmul(x, s), v_poly(s, TANH_POLY, FR_COUNT(TANH_POLY)), x);
  return vcopysign(vifless(a, vset1((real)0.625), small, big), x); /* -0 stays -0 */
}

/* The same three from a saved output y: derivatives with respect to the argument. */
FR_INLINE vec v_dsigmoid(vec y) { return vfnma(y, y, y); }
FR_INLINE vec v_dtanh(vec y) { return vfnma(y, y, vset1(1)); }
