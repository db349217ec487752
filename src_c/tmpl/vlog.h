/* log and softplus on vectors; the rules of vmath.h hold here too. Division is IEEE, so it gives the
 * same bits everywhere.
 *
 * x = 2^k m with sqrt(1/2) <= m < sqrt(2), f = m - 1, s = f / (2 + f), z = s^2:
 *   log(1 + f) = 2 atanh(s) = 2 s + s z Q(z) = f - (f^2/2 - s (f^2/2 + z Q(z))),
 * whose last form begins with f itself, which is exact, so that small f keep their relative
 * precision. Q is a Chebyshev fit (mpmath.chebyfit, 60 digits) of (2 atanh(s)/s - 2) / z on
 * 0 <= z <= 0.02947, s at m = sqrt(2). */

#if FR_BITS == 32
#define LOG_SPLIT 0x4afb0dp-149f /* the bits of 1 less those of sqrt(1/2) */
#define LOG_WHOLE 0x1p23f        /* its low bits are whole numbers */
#define LOG_TINY 0x1p-126f       /* the smallest normal number */
static const real LOG_POLY[] = {0x1.2ee8c8p-2f, 0x1.997c22p-2f, 0x1.55555cp-1f};
#else
#define LOG_SPLIT 0x95f619980c433p-1074
#define LOG_WHOLE 0x1p52
#define LOG_TINY 0x1p-1022
static const real LOG_POLY[] = {
    0x1.2b5f68a50d903p-3, 0x1.39fdcceb4bb45p-3, 0x1.7462b91b8df65p-3, 0x1.c71c62d5e53e0p-3,
    0x1.2492492dfd86cp-2, 0x1.9999999995273p-2, 0x1.5555555555558p-1};
#endif

/* k ln(2) + log(1 + f), for sqrt(1/2) <= 1 + f < sqrt(2). */
FR_INLINE vec v_log_sum(vec k, vec f) {
  const vec s = vdiv(f, vadd(f, vset1(2))), z = vmul(s, s), half = vmul(vmul(f, f), vset1(0.5f));
  vec q = vset1(LOG_POLY[0]);
  FR_UNROLL(16) for (int i = 1; i < FR_COUNT(LOG_POLY); i++) q = vfma(q, z, vset1(LOG_POLY[i]));
  const vec rest = vfma(s, vfma(z, q, half), vmul(k, vset1(LN2_LOW)));
  return vfma(k, vset1(LN2_HIGH), vsub(f, vsub(half, rest)));
}

/* -inf at 0 and below the smallest normal number, NaN below 0. */
FR_INLINE vec v_log(vec x) {
  const vec inf = vset1((real)__builtin_inf()), zero = vset1(0), one = vset1(1);
  const vec shifted = vshr(vadd_bits(x, vset1(LOG_SPLIT))); /* k + bias, as a whole number */
  const vec k = vsub(vadd_bits(shifted, vset1(LOG_WHOLE)), vset1(LOG_WHOLE + EXP_BIAS));
  const vec m = vadd_bits(vsub_bits(x, vshl(shifted)), one);
  const vec y = vifless(x, inf, v_log_sum(k, vsub(m, one)), x); /* infinity and NaN stay */
  const vec low = vifless(x, zero, vset1((real)__builtin_nan("")), vsub(zero, inf));
  return vifless(x, vset1(LOG_TINY), low, y);
}

/* log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x| <= 1. Where 1 + u is above sqrt(2), k = 1 and
 * f = (1 + u) / 2 - 1; elsewhere f is u itself, so that tiny results are as precise as others. Below
 * the smallest normal number the result is 0. */
FR_INLINE vec v_softplus(vec x) {
  const vec zero = vset1(0), one = vset1(1), z = vsub(zero, vabs(x));
  vec power;
  const vec p = v_exp_parts(z, 1, 0, 0, &power);
  const vec u = vifless(z, vset1(EXP_TINY), zero, vmul(vadd(p, one), power));
  const vec split = vset1((real)0.41421356237309503);
  const vec f = vifless(u, split, u, vmul(vsub(u, one), vset1(0.5f)));
  return vadd(vmax(zero, x), v_log_sum(vifless(u, split, zero, one), f));
}
