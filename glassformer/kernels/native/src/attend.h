/* Attention over cached keys and values, in blocks of keys with a running softmax ("FlashAttention", Dao et al. 2022).

   A block begins at a position that is a multiple of KEYS, whatever the query. Each score is a sum over 8 lanes; values are
   added in the order of their positions, only those that the query sees. So the result of a query does not depend on other
   queries, on the division of a prompt into chunks, or on where the keys are stored. */
#ifndef GF_ATTEND_H
#define GF_ATTEND_H

#include <stddef.h>

#include "op.h"
#include "simd.h"
#include "vector_math.h"

#define KEYS 64
#define QUERIES 48 /* of one key/value head, that use a block of keys while it is in the cache */
#define TILE 3     /* queries at once */
#define KEYS_AHEAD 16
#define MAX_HEAD 1024

typedef struct {
    f8 sums[QUERIES]; /* of the probabilities, before the division by their total */
    float scores[TILE][KEYS], z[QUERIES * MAX_HEAD];
    float padded_q[QUERIES * MAX_HEAD], padded_k[KEYS * MAX_HEAD], padded_v[KEYS * MAX_HEAD];
    float largest[QUERIES]; /* score so far */
    int first[QUERIES], end[QUERIES]; /* positions that a query sees */
    const float *q[QUERIES], *k[KEYS], *v[KEYS];
    int head_size, value_size; /* multiples of 8 */
    ptrdiff_t ahead;           /* numbers from a key to that which is fetched with it; 0: none */
} Attention;

/* x, or a copy that is filled up with zeros to a multiple of 8. */
INLINE const float *whole_vectors(const float *x, int n, float *copy) {
    if (n % 8 == 0) return x;
    memset(copy + (n & ~7), 0, 32);
    return memcpy(copy, x, (size_t)n * 4);
}

INLINE void dots(Attention *a, int rows, int keys, int row, int key) {
    f8 s[TILE][8];
    if (a->ahead != 0) /* the keys are read once: fetch later ones, and the values of these */
        for (int c = 0; c < keys; c++) {
            for (int j = 0; j < a->head_size; j += 16) prefetch(a->k[key + c] + a->ahead + j);
            for (int j = 0; j < a->value_size; j += 16) prefetch(a->v[key + c] + j);
        }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < keys; c++) s[r][c] = f8_zero();
    for (int j = 0; j < a->head_size; j += 8)
        for (int c = 0; c < keys; c++) {
            f8 k = f8_load(a->k[key + c] + j);
            for (int r = 0; r < rows; r++) s[r][c] = f8_fma(f8_load(a->q[row + r] + j), k, s[r][c]);
        }
    for (int r = 0; r < rows; r++) {
        if (keys == 1) a->scores[r][key] = f8_sum(s[r][0]);
        for (int c = 0; c + 4 <= keys; c += 4) f8_four_sums(s[r] + c, a->scores[r] + key + c);
    }
}

/* Turn scores from `begin` to `end` into probabilities relative to the largest score so far. */
INLINE void soften(const Op *op, Attention *a, int row, float *scores, int begin, int end) {
    const f8 scale = f8_set(op->f[0]), cap = f8_set(op->f[1]);
    int from = begin & ~7, to = (end + 7) & ~7;
    f8 most = f8_set(-INFINITY);
    if (op->f[1] != 0.0f)
        for (int i = from; i < to; i += 8) {
            f8 s = f8_mul(f8_load(scores + i), scale);
            f8_store(scores + i, f8_mul(cap, f8_tanh(f8_div(s, cap))));
        }
    for (int i = from; i < begin; i++) scores[i] = -INFINITY;
    for (int i = end; i < to; i++) scores[i] = -INFINITY;
    for (int i = from; i < to; i += 8) {
        f8 s = f8_load(scores + i);
        if (op->f[1] == 0.0f) f8_store(scores + i, s = f8_mul(s, scale));
        most = f8_max(s, most); /* ignores NaN */
    }
    float old = a->largest[row], largest = f8_largest(most);
    if (largest > old) {
        f8 factor = f8_exp(f8_set(old - largest));
        float *z = a->z + row * a->value_size;
        a->largest[row] = largest;
        a->sums[row] = f8_mul(a->sums[row], factor);
        for (int i = 0; i < a->value_size; i += 8) f8_store(z + i, f8_mul(f8_load(z + i), factor));
    }
    f8 shift = f8_set(a->largest[row] == -INFINITY ? 0.0f : a->largest[row]);
    for (int i = from; i < to; i += 8) {
        f8 p = f8_exp(f8_sub(f8_load(scores + i), shift)); /* NaN for NaN and infinity */
        a->sums[row] = f8_add(a->sums[row], p);
        f8_store(scores + i, p);
    }
}

/* Add the values of keys, times their probabilities, to `vectors` x 8 numbers of z. */
INLINE void add_values(Attention *a, int rows, int vectors, int row, int r0, int begin, int end, int j) {
    f8 sums[TILE][8];
    float *z = a->z + row * a->value_size + j;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) sums[r][c] = f8_load(z + r * a->value_size + 8 * c);
    for (int key = begin; key < end; key++) {
        const float *v = a->v[key] + j;
        for (int c = 0; c < vectors; c++) {
            f8 value = f8_load(v + 8 * c);
            for (int r = 0; r < rows; r++) sums[r][c] = f8_fma(f8_set(a->scores[r0 + r][key]), value, sums[r][c]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vectors; c++) f8_store(z + r * a->value_size + 8 * c, sums[r][c]);
}

INLINE void add_all_values(Attention *a, int rows, int row, int r0, int begin, int end) {
    int j = 0, n = a->value_size;
    if (begin >= end) return;
    if (rows == 1)
        for (; j + 64 <= n; j += 64) add_values(a, 1, 8, row, r0, begin, end, j);
    for (; j + 32 <= n; j += 32) add_values(a, rows, 4, row, r0, begin, end, j);
    for (; j < n; j += 8) add_values(a, rows, 1, row, r0, begin, end, j);
}

INLINE int within(int x, int begin, int end) { return x < begin ? begin : x > end ? end : x; }

/* `rows` queries and the block of keys from position `block`, of which those from `begin` to `end` are loaded. */
INLINE void attend_tile(const Op *op, Attention *a, int rows, int row, int block, int begin, int end) {
    int first[TILE], last[TILE], from = KEYS, to = 0, all_from = 0, all_to = KEYS;
    for (int r = 0; r < rows; r++) {
        first[r] = within(a->first[row + r], begin, end) - block;
        last[r] = within(a->end[row + r], begin, end) - block;
        if (first[r] >= last[r]) first[r] = last[r] = 0, all_to = 0;
        else {
            from = first[r] < from ? first[r] : from, to = last[r] > to ? last[r] : to;
            all_from = first[r] > all_from ? first[r] : all_from, all_to = last[r] < all_to ? last[r] : all_to;
        }
    }
    int key = from;
    if (rows == 1)
        for (; key + 8 <= to; key += 8) dots(a, 1, 8, row, key);
    for (; key + 4 <= to; key += 4) dots(a, rows, 4, row, key);
    for (; key < to; key++) dots(a, rows, 1, row, key);
    for (int r = 0; r < rows; r++)
        if (first[r] < last[r]) soften(op, a, row + r, a->scores[r], first[r], last[r]);
    if (rows == 1 || all_from >= all_to) { /* no key is visible to all of these queries */
        for (int r = 0; r < rows; r++) add_all_values(a, 1, row + r, r, first[r], last[r]);
        return;
    }
    for (int r = 0; r < rows; r++) add_all_values(a, 1, row + r, r, first[r], all_from);
    add_all_values(a, rows, row, 0, all_from, all_to);
    for (int r = 0; r < rows; r++) add_all_values(a, 1, row + r, r, all_to, last[r]);
}

/* Queries `begin` to `end` of those of one sequence and key/value head: position t, query head g at t * group + g. */
static void attend_queries(const Op *op, Attention *a, int b, int kv_head, int begin, int end) {
    const int *i = op->i, *positions = op->p[1], *lengths = op->p[2], *table = op->p[3];
    int tokens = i[0], heads = i[1], group = heads / i[2], slots = i[3], window = i[7], d = op->n_in, d_v = op->n_out;
    int rows = end - begin, from = INT32_MAX, to = 0;
    a->ahead = rows <= 2 * TILE ? (ptrdiff_t)KEYS_AHEAD * i[6] * d : 0;
    for (int r = 0; r < rows; r++) {
        int row = b * tokens + (begin + r) / group, head = kv_head * group + (begin + r) % group, own = positions[row];
        float sink = op->bias == NULL ? -INFINITY : op->bias[head];
        a->q[r] = whole_vectors((const float *)op->x + ((int64_t)row * heads + head) * d, d, a->padded_q + r * a->head_size);
        a->end[r] = own < 0 ? 0 : lengths == NULL ? own + 1 : lengths[b];
        a->first[r] = window > 0 && own >= window ? own - window + 1 : 0;
        from = own >= 0 && a->first[r] < from ? a->first[r] : from, to = a->end[r] > to ? a->end[r] : to;
        /* a sink is a score without value: its probability, relative to itself, is 1 */
        a->largest[r] = sink, a->sums[r] = f8_zero();
        float one[8] = {sink == -INFINITY ? 0.0f : 1.0f + (sink - sink)}; /* NaN for NaN and infinity */
        a->sums[r] = f8_load(one);
        memset(a->z + r * a->value_size, 0, (size_t)a->value_size * 4);
    }
    for (int block = from & -KEYS; from < to && block < to; block += KEYS) {
        int first = block < from ? from : block, last = block + KEYS < to ? block + KEYS : to, place = first % slots;
        for (int key = first - block; key < last - block; key++) {
            int slot = table == NULL ? place : table[(int64_t)b * slots + place];
            int64_t at = (int64_t)b * i[4] + (int64_t)kv_head * i[5] + (int64_t)slot * i[6];
            a->k[key] = whole_vectors((const float *)op->w + at * d, d, a->padded_k + key * a->head_size);
            a->v[key] = whole_vectors((const float *)op->p[0] + at * d_v, d_v, a->padded_v + key * a->value_size);
            place = place + 1 == slots ? 0 : place + 1;
        }
        int r = 0;
        for (; r + 3 <= rows; r += 3) attend_tile(op, a, 3, r, block, first, last);
        if (rows - r == 2) attend_tile(op, a, 2, r, block, first, last);
        if (rows - r == 1) attend_tile(op, a, 1, r, block, first, last);
    }
    for (int r = 0; r < rows; r++) {
        int row = b * tokens + (begin + r) / group, head = kv_head * group + (begin + r) % group;
        float *z = (float *)op->y + ((int64_t)row * heads + head) * d_v;
        f8 total = f8_set(f8_sum(a->sums[r])); /* 0 if all scores are -infinity: then z is NaN */
        for (int j = 0; j < d_v; j += 8) {
            f8 value = f8_div(f8_load(a->z + r * a->value_size + j), total);
            f8_store_part(z + j, positions[row] < 0 ? f8_zero() : value, d_v - j);
        }
    }
}

static void attend(const Op *op, int thread, int n_threads, void *scratch) {
    Attention *a = scratch;
    int tokens = op->i[0], kv_heads = op->i[2], rows = tokens * (op->i[1] / kv_heads), n = 0;
    a->head_size = (op->n_in + 7) & ~7, a->value_size = (op->n_out + 7) & ~7;
    for (int b = 0; b < op->rows / tokens; b++)
        for (int h = 0; h < kv_heads; h++)
            for (int begin = 0; begin < rows; begin += QUERIES)
                if (n++ % n_threads == thread) /* in turn: later queries see more keys */
                    attend_queries(op, a, b, h, begin, begin + QUERIES < rows ? begin + QUERIES : rows);
}
_Static_assert(sizeof(Attention) <= GF_SCRATCH, "the scratch memory is too small");
#endif
