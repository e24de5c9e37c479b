/* One operation on rows of float32, as Python describes it (ops.py has the same struct). */
#ifndef GF_OP_H
#define GF_OP_H

#include <stdint.h>

#define GF_ABI 1

typedef enum {
    GF_QUANTIZE, /* y: activations (activations.h) <- x [rows, n_in] */
    GF_LINEAR,   /* y [rows, n_out] = x w^T + bias, plus `residual`; x: float32, or activations for packed formats */
    GF_KINDS
} Kind;

typedef enum { GF_F32, GF_BF16, GF_F16, GF_Q8, GF_Q8F, GF_Q4, GF_Q4M, GF_Q4Z, GF_Q5, GF_Q5M, GF_Q4K, GF_Q5K, GF_Q6K,
               GF_IQ4NL, GF_IQ4XS, GF_MXFP4, GF_FORMATS } Format;

typedef struct Op {
    int32_t kind, format;
    int32_t no_barrier; /* the next operation does not read what this one writes, nor writes what this one reads */
    int32_t rows, n_in, n_out;
    const void *x, *w;
    const float *bias, *residual; /* NULL: none */
    void *y;
    int32_t i[8];
    float f[4];
    const void *p[4];
} Op;

/* `scratch`: GF_SCRATCH bytes of this thread. */
#define GF_SCRATCH (4 << 20)
typedef void (*OpFunction)(const Op *op, int thread, int n_threads, void *scratch);

typedef struct {
    const char *name;
    OpFunction functions[GF_KINDS];
} Level; /* the operations, compiled for one instruction set */

/* The part [*begin, *end) of `n` units of `step` that belongs to a thread. */
static inline void share(int n, int step, int thread, int n_threads, int *begin, int *end) {
    int64_t units = (n + step - 1) / step;
    *begin = (int)(units * thread / n_threads) * step;
    *end = (int)(units * (thread + 1) / n_threads) * step;
    if (*begin > n) *begin = n;
    if (*end > n) *end = n;
}
#endif
