/* RMSNorm and LayerNorm of rows. The work is divided by groups of 32 numbers, so that several threads share one long row;
   each computes the sums of the whole row, which is in the cache. */
#ifndef GF_NORM_H
#define GF_NORM_H

#include <math.h>

#include "activations.h"
#include "op.h"
#include "simd.h"

/* The sum of (x - shift)^power over a row; lane j of sum i adds numbers 8 i + j, 32 + 8 i + j, ...; power 1 or 2. */
INLINE float row_sum(const float *x, int n, float shift, int power) {
    f8 sums[4] = {f8_zero(), f8_zero(), f8_zero(), f8_zero()};
    float rest = 0.0f;
    int k = 0;
    for (; k + 8 <= n; k += 8) {
        f8 v = f8_sub(f8_load(x + k), f8_set(shift));
        int i = k / 8 % 4;
        sums[i] = power == 1 ? f8_add(sums[i], v) : f8_fma(v, v, sums[i]);
    }
    for (; k < n; k++) rest += power == 1 ? x[k] - shift : (x[k] - shift) * (x[k] - shift);
    return f8_sum(f8_add(f8_add(sums[0], sums[1]), f8_add(sums[2], sums[3]))) + rest;
}

static void norm(const Op *op, int thread, int n_threads, void *scratch) {
    int n = op->n_in, layer = op->i[0], one_plus = op->i[1], quantized = op->i[3];
    int64_t groups = (n + GROUP - 1) / GROUP, all = op->rows * groups;
    int64_t at = all * thread / n_threads, last = all * (thread + 1) / n_threads;
    while (at < last) {
        int64_t row = at / groups, end = (row + 1) * groups < last ? (row + 1) * groups : last;
        const float *x = (const float *)op->x + row * n;
        const float *w = op->w == NULL ? NULL : (const float *)op->w + row % op->i[2] * n;
        float *y = quantized ? scratch : (float *)op->y + row * n;
        float mean = layer ? row_sum(x, n, 0.0f, 1) / (float)n : 0.0f;
        float scale = 1.0f / sqrtf(row_sum(x, n, mean, 2) / (float)n + op->f[0]);
        int k = (int)(at - row * groups) * GROUP, until = (int)(end - row * groups) * GROUP;
        for (until = until < n ? until : n; k < until; k += 8) {
            int width = until - k < 8 ? until - k : 8;
            f8 v = f8_mul(f8_sub(f8_load_part(x + k, width), f8_set(mean)), f8_set(scale));
            if (w != NULL) {
                f8 factor = f8_load_part(w + k, width);
                v = f8_mul(v, one_plus ? f8_add(f8_set(1.0f), factor) : factor);
            }
            if (op->bias != NULL) v = f8_add(v, f8_load_part(op->bias + k, width));
            f8_store_part(y + k, v, width);
        }
        if (quantized) {
            Activations a = activations(op->y, op->rows, n);
            for (; at < end; at++) quantize_group(&a, at, y + (at - row * groups) * GROUP);
        }
        at = end;
    }
}
#endif
