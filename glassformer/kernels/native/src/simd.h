/* Vectors of 8 numbers, in AVX2 or in plain C. Both give the same bits, so that every level computes the same numbers. */
#ifndef GF_SIMD_H
#define GF_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
#define INLINE static inline /* otherwise a build with sanitizers takes minutes */
#else
#define INLINE static inline __attribute__((always_inline))
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

typedef __m256 f8;  /* 8 floats */
typedef __m256i i8; /* 8 int32, 16 int16 or 32 bytes */

INLINE f8 f8_zero(void) { return _mm256_setzero_ps(); }
INLINE f8 f8_set(float a) { return _mm256_set1_ps(a); }
INLINE f8 f8_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void f8_store(float *p, f8 a) { _mm256_storeu_ps(p, a); }
INLINE f8 f8_add(f8 a, f8 b) { return _mm256_add_ps(a, b); }
INLINE f8 f8_sub(f8 a, f8 b) { return _mm256_sub_ps(a, b); }
INLINE f8 f8_mul(f8 a, f8 b) { return _mm256_mul_ps(a, b); }
INLINE f8 f8_div(f8 a, f8 b) { return _mm256_div_ps(a, b); }
INLINE f8 f8_fma(f8 a, f8 b, f8 c) { return _mm256_fmadd_ps(a, b, c); } /* a b + c, rounded once */
INLINE f8 f8_min(f8 a, f8 b) { return _mm256_min_ps(a, b); }            /* b where a or b is NaN */
INLINE f8 f8_max(f8 a, f8 b) { return _mm256_max_ps(a, b); }            /* b where a or b is NaN */
INLINE f8 f8_abs(f8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE f8 f8_round(f8 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE i8 f8_to_int(f8 a) { return _mm256_cvtps_epi32(a); } /* to nearest, ties to even */
INLINE f8 f8_from_int(i8 a) { return _mm256_cvtepi32_ps(a); }
/* 2^n for integers n from -126 to 127 */
INLINE f8 f8_exp2_int(i8 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
/* a where c < d, otherwise b; b where c or d is NaN */
INLINE f8 f8_if_less(f8 c, f8 d, f8 a, f8 b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(c, d, _CMP_LT_OQ)); }
/* b where a is not NaN, otherwise a */
INLINE f8 f8_or_nan(f8 a, f8 b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
INLINE float f8_sum(f8 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
/* f8_sum of each of 4 vectors */
INLINE void f8_four_sums(const f8 v[4], float *sums) {
    f8 ab = _mm256_add_ps(_mm256_permute2f128_ps(v[0], v[1], 0x20), _mm256_permute2f128_ps(v[0], v[1], 0x31));
    f8 cd = _mm256_add_ps(_mm256_permute2f128_ps(v[2], v[3], 0x20), _mm256_permute2f128_ps(v[2], v[3], 0x31));
    f8 pairs = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee)); /* a a c c b b d d */
    f8 all = _mm256_add_ps(_mm256_shuffle_ps(pairs, pairs, 0x88), _mm256_shuffle_ps(pairs, pairs, 0xdd));
    _mm_storeu_ps(sums, _mm_unpacklo_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
INLINE float f8_largest(f8 v) { /* without NaN */
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}
INLINE f8 f8_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
/* 16 bfloat16: those at even places, then those at odd places */
INLINE void f8_load_bf16(const uint16_t *p, f8 *even, f8 *odd) {
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000)));
}
INLINE f8 f8_load_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE f8 f8_load_s8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* The same value. The compiler does not reorder sums across it, which would need more registers than there are. */
INLINE i8 hide_from_optimizer(i8 a) {
    __asm__("" : "+x"(a));
    return a;
}
INLINE i8 i8_zero(void) { return _mm256_setzero_si256(); }
INLINE i8 i8_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void i8_store(void *p, i8 a) { _mm256_storeu_si256((__m256i *)p, a); }
INLINE i8 i8_set(int32_t a) { return _mm256_set1_epi32(a); }
INLINE i8 i8_set_bytes(int8_t a) { return _mm256_set1_epi8(a); }
INLINE i8 i8_add(i8 a, i8 b) { return _mm256_add_epi32(a, b); }
INLINE i8 i8_sub(i8 a, i8 b) { return _mm256_sub_epi32(a, b); }
INLINE i8 i8_mul(i8 a, i8 b) { return _mm256_mullo_epi32(a, b); }
INLINE i8 i8_load_u8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE i8 i8_load_s8(const int8_t *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)); }

/* 32 int32 from -128 to 127 as bytes and as int16 */
INLINE void i8_narrow(const i8 a[4], int8_t *bytes, int16_t *halves) {
    i8 low = _mm256_permute4x64_epi64(_mm256_packs_epi32(a[0], a[1]), 0xd8);
    i8 high = _mm256_permute4x64_epi64(_mm256_packs_epi32(a[2], a[3]), 0xd8);
    i8_store(halves, low), i8_store(halves + 16, high);
    i8_store(bytes, _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8));
}
INLINE int32_t i8_sum(i8 a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}

INLINE i8 b32_and(i8 a, i8 b) { return _mm256_and_si256(a, b); }
INLINE i8 b32_or(i8 a, i8 b) { return _mm256_or_si256(a, b); }
/* shifts of 16-bit numbers; the caller masks bits that cross a byte */
#define b32_shift_right(a, n) _mm256_srli_epi16(a, n)
#define b32_shift_left(a, n) _mm256_slli_epi16(a, n)
INLINE i8 b32_abs(i8 a) { return _mm256_abs_epi8(a); }           /* 128 for -128, as an unsigned byte */
INLINE i8 b32_sign(i8 a, i8 b) { return _mm256_sign_epi8(a, b); } /* a times the sign of b */
INLINE i8 b32_table(const int8_t table[16], i8 index) {           /* table[index], index from 0 to 15 */
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), index);
}
INLINE i8 h16_add(i8 a, i8 b) { return _mm256_add_epi16(a, b); }
/* u[2i] s[2i] + u[2i+1] s[2i+1] as 16 int16; u unsigned bytes, s signed bytes; saturates */
INLINE i8 h16_pairs(i8 u, i8 s) { return _mm256_maddubs_epi16(u, s); }
/* a[2i] b[2i] + a[2i+1] b[2i+1] as 8 int32, of int16 */
INLINE i8 i8_pairs(i8 a, i8 b) { return _mm256_madd_epi16(a, b); }
INLINE i8 i8_pair_sums(i8 a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); } /* a[2i] + a[2i+1], of int16 */
/* bytes 4i..4i+3 as int16: numbers 4i and 4i+1 in *low (at 2i, 2i+1), 4i+2 and 4i+3 in *high */
INLINE void h16_widen(i8 a, i8 *low, i8 *high) {
    const i8 order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2,
                                      3, 6, 7, 10, 11, 14, 15);
    a = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(a, order), 0xd8); /* low pairs, then high pairs */
    *low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(a));
    *high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(a, 1));
}
INLINE i8 h16_mul(i8 a, i8 b) { return _mm256_mullo_epi16(a, b); }
/* each int32, which fits in 16 bits, twice as int16 */
INLINE i8 h16_twice(i8 a) {
    return _mm256_or_si256(_mm256_slli_epi32(a, 16), _mm256_and_si256(a, _mm256_set1_epi32(0xffff)));
}
INLINE i8 b32_sub(i8 a, i8 b) { return _mm256_sub_epi8(a, b); }
INLINE void spin_pause(void) { _mm_pause(); }
INLINE void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }

#else

typedef struct { float v[8]; } f8;
typedef union {
    int32_t v[8];
    int16_t h[16];
    uint16_t uh[16];
    int8_t b[32];
    uint8_t u[32];
} i8;

#define EACH(type, expression)            \
    type r;                               \
    for (int i = 0; i < 8; i++) {         \
        r.v[i] = (expression);            \
    }                                     \
    return r
#define EACH_BYTE(field, expression)      \
    i8 r;                                 \
    for (int i = 0; i < 32; i++) {        \
        r.field[i] = (expression);        \
    }                                     \
    return r
#define EACH_HALF(field, expression)      \
    i8 r;                                 \
    for (int i = 0; i < 16; i++) {        \
        r.field[i] = (expression);        \
    }                                     \
    return r

INLINE float bits_to_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 0) {
        float f = (float)fraction * 5.9604644775390625e-08f; /* 2^-24 */
        return sign ? -f : f;
    }
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | (fraction ? 0x400000 | fraction << 13 : 0));
    return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}
INLINE f8 f8_zero(void) { EACH(f8, 0.0f); }
INLINE f8 f8_set(float a) { EACH(f8, a); }
INLINE f8 f8_load(const float *p) { EACH(f8, p[i]); }
INLINE void f8_store(float *p, f8 a) { memcpy(p, a.v, sizeof a.v); }
INLINE f8 f8_add(f8 a, f8 b) { EACH(f8, a.v[i] + b.v[i]); }
INLINE f8 f8_sub(f8 a, f8 b) { EACH(f8, a.v[i] - b.v[i]); }
INLINE f8 f8_mul(f8 a, f8 b) { EACH(f8, a.v[i] * b.v[i]); }
INLINE f8 f8_div(f8 a, f8 b) { EACH(f8, a.v[i] / b.v[i]); }
INLINE f8 f8_fma(f8 a, f8 b, f8 c) { EACH(f8, fmaf(a.v[i], b.v[i], c.v[i])); }
INLINE f8 f8_min(f8 a, f8 b) { EACH(f8, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE f8 f8_max(f8 a, f8 b) { EACH(f8, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE f8 f8_abs(f8 a) { EACH(f8, fabsf(a.v[i])); }
INLINE f8 f8_round(f8 a) { EACH(f8, rintf(a.v[i])); }
INLINE i8 f8_to_int(f8 a) {
    EACH(i8, a.v[i] >= -2147483648.0f && a.v[i] < 2147483648.0f ? (int32_t)rintf(a.v[i]) : INT32_MIN);
}
INLINE f8 f8_from_int(i8 a) { EACH(f8, (float)a.v[i]); }
INLINE f8 f8_exp2_int(i8 n) { EACH(f8, bits_to_float((uint32_t)(n.v[i] + 127) << 23)); }
INLINE f8 f8_if_less(f8 c, f8 d, f8 a, f8 b) { EACH(f8, c.v[i] < d.v[i] ? a.v[i] : b.v[i]); }
INLINE f8 f8_or_nan(f8 a, f8 b) { EACH(f8, a.v[i] != a.v[i] ? a.v[i] : b.v[i]); }
INLINE float f8_sum(f8 v) {
    float a[4];
    for (int i = 0; i < 4; i++) a[i] = v.v[i] + v.v[i + 4];
    return (a[0] + a[2]) + (a[1] + a[3]);
}
INLINE void f8_four_sums(const f8 v[4], float *sums) {
    for (int i = 0; i < 4; i++) sums[i] = f8_sum(v[i]);
}
INLINE float f8_largest(f8 v) {
    float a = v.v[0];
    for (int i = 1; i < 8; i++) a = a > v.v[i] ? a : v.v[i];
    return a;
}
INLINE f8 f8_load_f16(const uint16_t *p) { EACH(f8, half_to_float(p[i])); }
INLINE void f8_load_bf16(const uint16_t *p, f8 *even, f8 *odd) {
    for (int i = 0; i < 8; i++) {
        even->v[i] = bits_to_float((uint32_t)p[2 * i] << 16);
        odd->v[i] = bits_to_float((uint32_t)p[2 * i + 1] << 16);
    }
}
INLINE f8 f8_load_u8(const uint8_t *p) { EACH(f8, (float)p[i]); }
INLINE f8 f8_load_s8(const int8_t *p) { EACH(f8, (float)p[i]); }

INLINE i8 hide_from_optimizer(i8 a) { return a; }
INLINE i8 i8_zero(void) { EACH(i8, 0); }
INLINE i8 i8_load(const void *p) {
    i8 r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE void i8_store(void *p, i8 a) { memcpy(p, &a, sizeof a); }
INLINE i8 i8_set(int32_t a) { EACH(i8, a); }
INLINE i8 i8_set_bytes(int8_t a) { EACH_BYTE(b, a); }
INLINE i8 i8_add(i8 a, i8 b) { EACH(i8, a.v[i] + b.v[i]); }
INLINE i8 i8_sub(i8 a, i8 b) { EACH(i8, a.v[i] - b.v[i]); }
INLINE i8 i8_mul(i8 a, i8 b) { EACH(i8, a.v[i] * b.v[i]); }
INLINE i8 i8_load_u8(const uint8_t *p) { EACH(i8, p[i]); }
INLINE i8 i8_load_s8(const int8_t *p) { EACH(i8, p[i]); }
INLINE void i8_narrow(const i8 a[4], int8_t *bytes, int16_t *halves) {
    for (int i = 0; i < 32; i++) bytes[i] = (int8_t)a[i / 8].v[i % 8], halves[i] = (int16_t)a[i / 8].v[i % 8];
}
INLINE int32_t i8_sum(i8 a) {
    int32_t sum = 0;
    for (int i = 0; i < 8; i++) sum += a.v[i];
    return sum;
}
INLINE i8 b32_and(i8 a, i8 b) { EACH(i8, a.v[i] & b.v[i]); }
INLINE i8 b32_or(i8 a, i8 b) { EACH(i8, a.v[i] | b.v[i]); }
INLINE i8 b32_shift_right(i8 a, int n) { EACH_HALF(uh, (uint16_t)(a.uh[i] >> n)); }
INLINE i8 b32_shift_left(i8 a, int n) { EACH_HALF(uh, (uint16_t)(a.uh[i] << n)); }
INLINE i8 b32_abs(i8 a) { EACH_BYTE(u, (uint8_t)(a.b[i] < 0 ? -a.b[i] : a.b[i])); }
INLINE i8 b32_sign(i8 a, i8 b) { EACH_BYTE(b, (int8_t)(b.b[i] < 0 ? -a.b[i] : b.b[i] > 0 ? a.b[i] : 0)); }
INLINE i8 b32_table(const int8_t table[16], i8 index) { EACH_BYTE(b, table[index.u[i]]); }
INLINE i8 h16_add(i8 a, i8 b) { EACH_HALF(h, (int16_t)(a.h[i] + b.h[i])); }
INLINE i8 h16_mul(i8 a, i8 b) { EACH_HALF(h, (int16_t)(a.h[i] * b.h[i])); }
INLINE i8 h16_twice(i8 a) { EACH_HALF(h, (int16_t)a.v[i / 2]); }
INLINE i8 b32_sub(i8 a, i8 b) { EACH_BYTE(b, (int8_t)(a.b[i] - b.b[i])); }
INLINE i8 h16_pairs(i8 u, i8 s) { EACH_HALF(h, (int16_t)(u.u[2 * i] * s.b[2 * i] + u.u[2 * i + 1] * s.b[2 * i + 1])); }
INLINE i8 i8_pairs(i8 a, i8 b) { EACH(i8, a.h[2 * i] * b.h[2 * i] + a.h[2 * i + 1] * b.h[2 * i + 1]); }
INLINE i8 i8_pair_sums(i8 a) { EACH(i8, a.h[2 * i] + a.h[2 * i + 1]); }
INLINE void h16_widen(i8 a, i8 *low, i8 *high) {
    for (int i = 0; i < 8; i++) {
        low->h[2 * i] = a.b[4 * i], low->h[2 * i + 1] = a.b[4 * i + 1];
        high->h[2 * i] = a.b[4 * i + 2], high->h[2 * i + 1] = a.b[4 * i + 3];
    }
}
INLINE void spin_pause(void) {}
INLINE void prefetch(const void *p) { (void)p; }

#endif

/* The first n of 8 numbers, or all if n is larger; the others are 0 or not stored. */
INLINE f8 f8_load_part(const float *p, int n) {
    float part[8] = {0};
    if (n >= 8) return f8_load(p);
    memcpy(part, p, (size_t)n * 4);
    return f8_load(part);
}
INLINE void f8_store_part(float *p, f8 a, int n) {
    float part[8];
    f8_store(n >= 8 ? p : part, a);
    if (n < 8) memcpy(p, part, (size_t)n * 4);
}
#endif
