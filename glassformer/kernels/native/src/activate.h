/* The activation function of an MLP: act(x), or gated act(x) * up, both bounded first if there is a limit. */
#ifndef GF_ACTIVATE_H
#define GF_ACTIVATE_H

#include "activations.h"
#include "op.h"
#include "simd.h"
#include "vector_math.h"

enum { RELU, GELU, GELU_TANH, QUICK_GELU, SILU };

INLINE f8 activation(int kind, f8 x) {
    if (kind == RELU) return f8_max(f8_zero(), x); /* keeps NaN */
    if (kind == GELU) return f8_mul(x, f8_normal(x));
    if (kind == GELU_TANH) { /* (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
        f8 inner = f8_fma(f8_mul(x, x), f8_set(0.0713548163f), f8_set(1.59576912f));
        return f8_mul(x, f8_sigmoid(f8_mul(x, inner)));
    }
    return f8_mul(x, f8_sigmoid(kind == QUICK_GELU ? f8_mul(x, f8_set(1.702f)) : x));
}

INLINE void activate_rows(const Op *op, int kind, int thread, int n_threads, void *scratch) {
    int n = op->n_in, quantized = op->i[2];
    int64_t groups = (n + GROUP - 1) / GROUP, all = op->rows * groups;
    const f8 limit = f8_set(op->f[0]), least = f8_set(-op->f[0]), one = f8_set(1.0f);
    Activations a = activations(op->y, op->rows, n);
    for (int64_t g = all * thread / n_threads; g < all * (thread + 1) / n_threads; g++) {
        int64_t begin = g / groups * n + g % groups * GROUP;
        int size = n - (int)(g % groups) * GROUP;
        float *y = quantized ? scratch : (float *)op->y + begin;
        for (int k = 0; k < size && k < GROUP; k += 8) {
            f8 x = f8_load_part((const float *)op->x + begin + k, size - k);
            if (op->i[3]) x = f8_min(limit, x);
            f8 v = activation(kind, x);
            if (op->w != NULL) {
                f8 up = f8_load_part((const float *)op->w + begin + k, size - k);
                if (op->i[3]) up = f8_max(least, f8_min(limit, up));
                v = f8_mul(v, op->i[1] ? f8_add(up, one) : up);
            }
            f8_store_part(y + k, v, size - k);
        }
        if (quantized) quantize_group(&a, g, y);
    }
}

static void activate(const Op *op, int thread, int n_threads, void *scratch) {
    if (op->i[0] == RELU) activate_rows(op, RELU, thread, n_threads, scratch);
    else if (op->i[0] == GELU) activate_rows(op, GELU, thread, n_threads, scratch);
    else if (op->i[0] == GELU_TANH) activate_rows(op, GELU_TANH, thread, n_threads, scratch);
    else if (op->i[0] == QUICK_GELU) activate_rows(op, QUICK_GELU, thread, n_threads, scratch);
    else activate_rows(op, SILU, thread, n_threads, scratch);
}

static void add(const Op *op, int thread, int n_threads, void *scratch) {
    (void)scratch;
    int64_t n = (int64_t)op->rows * op->n_in, vectors = (n + 7) / 8;
    for (int64_t k = vectors * thread / n_threads * 8; k < vectors * (thread + 1) / n_threads * 8; k += 8) {
        int width = n - k < 8 ? (int)(n - k) : 8;
        f8 sum = f8_add(f8_load_part((const float *)op->x + k, width), f8_load_part((const float *)op->w + k, width));
        f8_store_part((float *)op->y + k, sum, width);
    }
}
#endif
