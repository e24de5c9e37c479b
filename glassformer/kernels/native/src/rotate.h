/* Rotary positions of heads (nn/rope.py), and the copy of heads into a cache. Products and sums are rounded separately,
   as PyTorch does. */
#ifndef GF_ROTATE_H
#define GF_ROTATE_H

#include "op.h"
#include "simd.h"

/* The address of a head in a cache, or NULL if it is not stored: padding, or its slot is for a later token of the rows. */
INLINE float *cached(const Op *op, int row, int head) {
    const int *i = op->i, *position = op->p[2], tokens = i[3], slots = i[4], b = row / tokens;
    int own = position[row], last = own;
    if (tokens > slots) /* a ring, which the rows fill more than once */
        for (int t = row + 1; t < (b + 1) * tokens; t++) last = position[t] > last ? position[t] : last;
    if (own < 0 || last - own >= slots) return NULL;
    int64_t at = (int64_t)b * i[5] + (int64_t)head * i[6] + (int64_t)(own % slots) * i[7];
    return (float *)op->y + at * op->n_in;
}

static void rotate(const Op *op, int thread, int n_threads, void *scratch) {
    (void)scratch;
    int heads = op->i[0], pairs = op->i[1], size = op->n_in;
    int64_t all = (int64_t)op->rows * heads;
    for (int64_t h = all * thread / n_threads; h < all * (thread + 1) / n_threads; h++) {
        int row = (int)(h / heads);
        const float *x = (const float *)op->x + h * size;
        float *y = op->p[2] == NULL ? (float *)op->y + h * size : cached(op, row, (int)(h % heads));
        if (y == NULL) continue;
        int64_t angle = pairs == 0 ? 0 : (int64_t)(row % op->i[2]) * pairs;
        const float *cos = (const float *)op->p[0] + angle, *sin = (const float *)op->p[1] + angle;
        for (int k = 0; k < pairs; k += 8) {
            int n = pairs - k;
            f8 a = f8_load_part(x + k, n), b = f8_load_part(x + pairs + k, n);
            f8 c = f8_load_part(cos + k, n), s = f8_load_part(sin + k, n);
            f8_store_part(y + k, f8_sub(f8_mul(a, c), f8_mul(b, s)), n);
            f8_store_part(y + pairs + k, f8_add(f8_mul(b, c), f8_mul(a, s)), n);
        }
        if (x != y) memcpy(y + 2 * pairs, x + 2 * pairs, (size_t)(size - 2 * pairs) * 4);
    }
}
#endif
