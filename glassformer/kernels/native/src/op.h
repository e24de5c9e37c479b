/* One operation on rows of float32, as Python describes it (ops.py has the same struct). */
#ifndef GF_OP_H
#define GF_OP_H

#include <stdint.h>

#define GF_ABI 3

typedef enum {
    GF_QUANTIZE, /* y: activations (activations.h) <- x [rows, n_in] */
    GF_LINEAR,   /* y [rows, n_out] = x w^T + bias, plus `residual`; x: float32, or activations for packed formats */

    /* y [rows, n_in] = norm of rows x, or activations if i[3]. w [i[2], n_in], bias: NULL or factors and summands; row r has
       factors r % i[2]. i[0]: LayerNorm, otherwise RMSNorm; i[1]: the factor is 1 + w. f[0]: eps */
    GF_NORM,

    /* y = heads x [rows, i[0], n_in], in each of which pairs (j, j + i[1]), j < i[1], are rotated by the angles of row r % i[2]
       of cosines p[0] and sines p[1], [i[2], i[1]]. y may be x. With positions p[2] (int32 [rows], rows = B i[3]), y is a cache
       of i[4] slots: position t in slot t % i[4], -1 is not stored; i[5], i[6], i[7]: the distance from one sequence, head and
       slot to the next, in heads (n_in numbers). Without pairs, heads are copied */
    GF_ROTATE,

    /* y [rows, n_in] = act(x), times w (like x) if that is not NULL, or activations if i[2]. i[0]: the function (activate.h);
       i[1]: times w + 1; i[3]: x is at most f[0], and w from -f[0] to f[0] */
    GF_ACTIVATE,

    /* y [rows, H, n_out] = attention of queries x [rows, H, n_in] over keys w and values p[0]. i[0]: queries of a sequence,
       rows = B i[0]; i[1]: H; i[2]: key/value heads. p[1]: positions, int32 [rows], -1: padding, whose y is 0. Position t is
       in slot t % i[3], or with a table p[3] (int32 [B, i[3]]) in slot table[t % i[3]]; i[4], i[5], i[6]: the distance from one
       sequence, head and slot to the next, in heads. A query sees the last i[7] (0: all) positions up to its own; with
       lengths p[2] (int32 [B], at least 1), up to the last. f[0]: scale; f[1]: softcap or 0; bias: sinks [H] or NULL */
    GF_ATTEND,

    GF_ADD, /* y [rows, n_in] = x + w, w like x */

    GF_LOOK_UP, /* y [rows, n_in] = rows x (int64 [rows], from 0 to n_out - 1) of the packed matrix w [n_out, n_in], decoded */
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
