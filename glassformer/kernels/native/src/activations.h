/* Rows of activations as int8 with one scale for each group of 32, in one buffer.

   xq int8 [rows, n_in] | x16 int16 [rows, n_in] | xs float [rows, groups] | sx float [rows, groups] | halves int32
   [rows, groups, 2]: the sums of xq over the first and the last 16 inputs of each group; sx = xs * their sum. */
#ifndef GF_ACTIVATIONS_H
#define GF_ACTIVATIONS_H

#include "op.h"
#include "simd.h"

#define GROUP 32

typedef struct {
    int8_t *xq;
    int16_t *x16;
    float *xs, *sx;
    int32_t *halves;
    int groups;
} Activations;

INLINE Activations activations(const void *buffer, int rows, int n_in) {
    char *p = (char *)buffer;
    size_t n = (size_t)rows * (size_t)n_in;
    Activations a = {.groups = n_in / GROUP};
    a.xq = (int8_t *)p;
    a.x16 = (int16_t *)(p + n);
    a.xs = (float *)(p + 3 * n);
    a.sx = a.xs + n / GROUP;
    a.halves = (int32_t *)(a.sx + n / GROUP);
    return a;
}

/* Quantize group g, the 32 numbers at x. */
INLINE void quantize_group(const Activations *a, int64_t g, const float *x) {
    f8 v[4], largest = f8_zero(), nan = f8_zero();
    for (int j = 0; j < 4; j++) {
        v[j] = f8_load(x + 8 * j);
        largest = f8_max(f8_abs(v[j]), largest);
        nan = f8_add(nan, f8_mul(v[j], f8_zero())); /* NaN for NaN and infinity, otherwise 0 */
    }
    float most = f8_largest(largest), odd = f8_sum(nan);
    float inverse = 127.0f / most;
    int usable = odd == odd && inverse <= 3.402823466e+38f; /* smaller numbers, and 0, become 0 */
    if (!usable) inverse = 0.0f;
    i8 q[4];
    for (int j = 0; j < 4; j++) q[j] = usable ? f8_to_int(f8_mul(v[j], f8_set(inverse))) : i8_zero();
    i8_narrow(q, a->xq + g * GROUP, a->x16 + g * GROUP);
    int32_t sums[2] = {i8_sum(i8_add(q[0], q[1])), i8_sum(i8_add(q[2], q[3]))};
    float scale = usable ? most / 127.0f : odd; /* `odd` is 0 or NaN */
    a->xs[g] = scale;
    a->sx[g] = scale * (float)(sums[0] + sums[1]);
    a->halves[2 * g] = sums[0], a->halves[2 * g + 1] = sums[1];
}

static void quantize(const Op *op, int thread, int n_threads, void *scratch) {
    (void)scratch;
    Activations a = activations(op->y, op->rows, op->n_in);
    int64_t all = (int64_t)op->rows * a.groups, last = all * (thread + 1) / n_threads;
    for (int64_t g = all * thread / n_threads; g < last; g++) quantize_group(&a, g, (const float *)op->x + g * GROUP);
}
#endif
