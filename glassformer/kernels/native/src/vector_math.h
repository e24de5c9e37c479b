/* exp, tanh, the logistic function and the normal distribution of 8 numbers, by minimax polynomials.

   Largest errors against float64 from -104 to 104, in ulp: exp 1.0, tanh 1.3, sigmoid 2.3, normal 3.7; below 2^-126, in
   units of the smallest normal number's ulp. Products with x are tested in tests/kernels/test_native_rows.py. NaN gives NaN. */
#ifndef GF_VECTOR_MATH_H
#define GF_VECTOR_MATH_H

#include "simd.h"

#define POLYNOMIAL(x, coefficients) polynomial(x, coefficients, (int)(sizeof(coefficients) / sizeof *(coefficients)))
INLINE f8 polynomial(f8 x, const float *coefficients, int n) { /* from the constant term on */
    f8 y = f8_set(coefficients[n - 1]);
    for (int i = n - 2; i >= 0; i--) y = f8_fma(y, x, f8_set(coefficients[i]));
    return y;
}

/* exp(x) = 2^n exp(r), x = n ln 2 + r; r^2 times a polynomial is exp(r) - 1 - r for |r| <= ln 2 / 2 */
INLINE f8 f8_exp(f8 x) {
    static const float terms[] = {0.49999994f, 0.1666652f, 0.041668393f, 0.008368781f, 0.0013814465f};
    x = f8_max(f8_set(-105.0f), f8_min(f8_set(90.0f), x)); /* exp(-105) is 0, exp(90) infinite; keeps NaN */
    f8 n = f8_round(f8_mul(x, f8_set(1.44269504f)));
    f8 r = f8_fma(n, f8_set(-0.693359375f), x); /* ln 2 in two parts; the first product is exact */
    r = f8_fma(n, f8_set(2.12194440e-4f), r);
    f8 y = f8_add(f8_fma(POLYNOMIAL(r, terms), f8_mul(r, r), r), f8_set(1.0f));
    f8 normal = f8_max(f8_set(-126.0f), f8_min(f8_set(127.0f), n)); /* 2^n in two factors, for denormal results */
    y = f8_mul(y, f8_exp2_int(f8_to_int(normal)));
    return f8_mul(y, f8_exp2_int(f8_to_int(f8_sub(n, normal))));
}

/* 1 / (1 + exp(-x)); exp of a negative number never overflows */
INLINE f8 f8_sigmoid(f8 x) {
    f8 e = f8_exp(f8_sub(f8_zero(), f8_abs(x)));
    return f8_div(f8_if_less(x, f8_zero(), e, f8_set(1.0f)), f8_add(f8_set(1.0f), e));
}

/* x + x^3 times a polynomial of x^2 for |x| < 0.6, otherwise 1 - 2 / (exp(2 |x|) + 1) with the sign of x */
INLINE f8 f8_tanh(f8 x) {
    static const float terms[] = {-0.33333299f, 0.13331959f, -0.05378668f, 0.020805378f, -0.0059058706f};
    f8 size = f8_abs(x), square = f8_mul(x, x), one = f8_set(1.0f);
    f8 e = f8_exp(f8_add(size, size));
    f8 large = f8_sub(one, f8_div(f8_set(2.0f), f8_add(e, one)));
    f8 small = f8_fma(POLYNOMIAL(square, terms), f8_mul(square, x), x);
    large = f8_if_less(x, f8_zero(), f8_sub(f8_zero(), large), large);
    return f8_if_less(size, f8_set(0.6f), small, large);
}

/* The probability that a standard normal number is below x: (1 + erf(x / sqrt 2)) / 2.
   For a = |x|, that of -a is exp(-a^2 / 2) / (1 + a) times a polynomial of (a - 3) / (a + 3). */
INLINE f8 f8_normal(f8 x) {
    static const float terms[] = {0.4860558f,     -0.09652678f, -0.01643238f,    0.04516461f,     -0.022726426f, 0.0011554161f,
                                  0.0029903804f, -0.000341584f, -0.00046921552f, 1.3696256e-05f, 4.7205307e-05f};
    const f8 one = f8_set(1.0f), three = f8_set(3.0f), half = f8_set(-0.5f);
    f8 a = f8_min(f8_set(15.0f), f8_abs(x)); /* the probability below -15 is 0 */
    f8 square = f8_mul(a, a), rest = f8_fma(a, a, f8_sub(f8_zero(), square)); /* their sum is a^2 */
    f8 e = f8_exp(f8_mul(square, half));
    e = f8_fma(f8_mul(rest, half), e, e);
    f8 below = f8_mul(e, f8_div(POLYNOMIAL(f8_div(f8_sub(a, three), f8_add(a, three)), terms), f8_add(one, a)));
    return f8_if_less(x, f8_zero(), below, f8_sub(one, below));
}
#endif
