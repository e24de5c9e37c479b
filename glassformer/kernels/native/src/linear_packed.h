/* Products with quantized matrices, packed in panels of 8 outputs and groups of 32 inputs (packed.py describes the formats).

   Activations are int8 with a scale xs for each group. For each group, in ascending order:

       isum = sum of integer weights x xq                    exact, in int32
       y    = fma(isum, s xs, y)                             s: the group's scale of each output
       y    = fma(m, xs sum(xq), y)                          where the format has a minimum m

   So a result does not depend on the number of rows or threads. Up to FEW_PACKED rows: a group is unpacked into registers
   and multiplied at once. More: 2 panels x 16 groups are unpacked into the first-level cache, and multiplied with 4 rows at
   a time. */
#ifndef GF_LINEAR_PACKED_H
#define GF_LINEAR_PACKED_H

#include "activations.h"
#include "op.h"
#include "simd.h"

#define PANEL 8
#define CHUNKS 8 /* of 4 inputs x 8 outputs, in a group */
#define SUPER 8  /* groups under one header */
#define FEW_PACKED 7
#define TILE_GROUPS 16
#define TILE_ROWS 256
#define PREFETCH 2048 /* bytes */

static const int8_t iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t fp4_table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Layout of the formats, as constants that the compiler folds. */
INLINE int super_bytes(int f) { return f == GF_Q4K || f == GF_Q5K ? 32 : f == GF_Q6K || f == GF_IQ4XS ? 16 : 0; }
INLINE int scale_bytes(int f) {
    switch (f) {
    case GF_Q8F: return 32;
    case GF_Q4M: case GF_Q5M: return 32;
    case GF_Q4Z: return 40;
    case GF_IQ4XS: case GF_MXFP4: return 8;
    default: return 16; /* two vectors of bytes, or one of float16 */
    }
}
INLINE int is_int8(int f) { return f == GF_Q8 || f == GF_Q8F; }
INLINE int is_5bit(int f) { return f == GF_Q5 || f == GF_Q5M || f == GF_Q5K; }
INLINE int is_table(int f) { return f == GF_IQ4NL || f == GF_IQ4XS || f == GF_MXFP4; }
INLINE int has_minimum(int f) { return f == GF_Q4M || f == GF_Q5M || f == GF_Q4K || f == GF_Q5K; }
INLINE int weight_bytes(int f) { return is_int8(f) ? 256 : is_5bit(f) ? 160 : f == GF_Q6K ? 192 : 128; }
INLINE int group_bytes(int f) { return scale_bytes(f) + weight_bytes(f); }
INLINE size_t panel_bytes(int f, int groups) {
    size_t bytes = (size_t)groups * (size_t)group_bytes(f);
    return super_bytes(f) ? bytes + (size_t)(groups / SUPER) * (size_t)super_bytes(f) : bytes;
}
INLINE size_t group_offset(int f, int g) {
    size_t offset = (size_t)g * (size_t)group_bytes(f);
    return super_bytes(f) ? offset + (size_t)(g / SUPER + 1) * (size_t)super_bytes(f) : offset;
}
/* The header of the super-group of group g, relative to the panel. */
INLINE size_t super_offset(int f, int g) {
    return (size_t)(g / SUPER) * (size_t)(SUPER * group_bytes(f) + super_bytes(f));
}

/* The integer weights of chunks 2c and 2c + 1 of a group: signed for int8 and tables, otherwise unsigned. */
INLINE void unpack(int f, const uint8_t *record, int c, i8 w[2]) {
    const uint8_t *p = record + scale_bytes(f);
    const i8 low = i8_set_bytes(15), one = i8_set_bytes(16), two = i8_set_bytes(48);
    if (is_int8(f)) {
        w[0] = i8_load(p + 64 * c), w[1] = i8_load(p + 64 * c + 32);
        return;
    }
    i8 both = i8_load(p + 32 * c);
    w[0] = b32_and(both, low), w[1] = b32_and(b32_shift_right(both, 4), low);
    if (is_table(f)) {
        const int8_t *table = f == GF_MXFP4 ? fp4_table : iq4_table;
        w[0] = b32_table(table, w[0]), w[1] = b32_table(table, w[1]);
    } else if (is_5bit(f)) { /* bit c of a byte belongs to chunk c */
        i8 high = i8_load(p + 128);
        i8 first = c == 0 ? b32_shift_left(high, 4) : c == 1 ? b32_shift_left(high, 2) : c == 2 ? high : b32_shift_right(high, 2);
        i8 second = c == 0 ? b32_shift_left(high, 3) : c == 1 ? b32_shift_left(high, 1)
                  : c == 2 ? b32_shift_right(high, 1) : b32_shift_right(high, 3);
        w[0] = b32_or(w[0], b32_and(first, one)), w[1] = b32_or(w[1], b32_and(second, one));
    } else if (f == GF_Q6K) { /* bits 2s and 2s + 1 of a byte of chunk h belong to chunk 4h + s */
        i8 high = i8_load(p + 128 + 32 * (c / 2));
        i8 first = c % 2 == 0 ? b32_shift_left(high, 4) : high;
        i8 second = c % 2 == 0 ? b32_shift_left(high, 2) : b32_shift_right(high, 2);
        w[0] = b32_or(w[0], b32_and(first, two)), w[1] = b32_or(w[1], b32_and(second, two));
    }
}

/* The scales of a group, one for each output, and the minimum. */
INLINE void scales(int f, const uint8_t *super, const uint8_t *record, f8 *s, f8 *m) {
    switch (f) {
    case GF_Q8F: case GF_Q4Z: *s = f8_load((const float *)record); break;
    case GF_Q4K: case GF_Q5K:
        *s = f8_mul(f8_load_f16((const uint16_t *)super), f8_load_u8(record));
        *m = f8_sub(f8_zero(), f8_mul(f8_load_f16((const uint16_t *)super + 8), f8_load_u8(record + 8)));
        break;
    case GF_Q6K: *s = f8_load_f16((const uint16_t *)super); break;
    case GF_IQ4XS: *s = f8_mul(f8_load_f16((const uint16_t *)super), f8_load_s8((const int8_t *)record)); break;
    case GF_MXFP4: { /* 2^(e - 128): below 2^-126 in two steps */
        i8 e = i8_load_u8(record);
        f8 big = f8_exp2_int(i8_sub(e, i8_set(127)));          /* 0 instead of 2^-127 for e = 0 */
        f8 tiny = f8_set(5.877471754111438e-39f);               /* 2^-127 */
        *s = f8_if_less(f8_from_int(e), f8_set(1), f8_mul(tiny, f8_set(0.5f)), f8_mul(big, f8_set(0.5f)));
        break;
    }
    default:
        *s = f8_load_f16((const uint16_t *)record);
        if (has_minimum(f)) *m = f8_load_f16((const uint16_t *)record + 8);
    }
}

INLINE i8 four_bytes(const int8_t *x) {
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return i8_set(bytes);
}

/* Integers that fit maddubs and a sum of 16-bit numbers for a complete group. */
INLINE int sums_in_16_bits(int f) { return !is_int8(f) && !is_5bit(f) && f != GF_Q6K && (!is_table(f) || f == GF_MXFP4); }

/* w[i] x[i] for bytes, in pairs, as int16. */
INLINE i8 pairs(int f, i8 w, i8 x) {
    return is_int8(f) || is_table(f) ? h16_pairs(b32_abs(w), b32_sign(x, w)) : h16_pairs(w, x);
}

/* The exact integer sums of a group, for some rows. x: the group of the first row, `stride` bytes apart; halves: for each
   row, the sums of x over the first and the last 16 inputs, `halves_stride` apart. */
INLINE void group_sums(int f, int rows, const uint8_t *record, const int8_t *x, size_t stride, const int32_t *halves,
                       size_t halves_stride, i8 sums[4]) {
    i8 half[4];
    for (int r = 0; r < rows; r++) sums[r] = half[r] = i8_zero();
    for (int c = 0; c < 4; c++) {
        i8 w[2];
        unpack(f, record, c, w);
        for (int r = 0; r < rows; r++) {
            i8 first = pairs(f, w[0], four_bytes(x + (size_t)r * stride + 8 * c));
            i8 second = pairs(f, w[1], four_bytes(x + (size_t)r * stride + 8 * c + 4));
            if (sums_in_16_bits(f)) {
                sums[r] = h16_add(sums[r], h16_add(first, second));
            } else if (is_5bit(f)) { /* two of the four steps fit in 16 bits */
                half[r] = c % 2 == 0 ? h16_add(first, second) : h16_add(half[r], h16_add(first, second));
                if (c % 2 == 1) sums[r] = i8_add(sums[r], i8_pair_sums(half[r]));
            } else if (f == GF_Q6K) { /* the first 16 inputs in half, the last 16 in sums */
                i8 sum = i8_pair_sums(h16_add(first, second));
                if (c < 2) half[r] = i8_add(half[r], sum);
                else sums[r] = i8_add(sums[r], sum);
            } else {
                sums[r] = i8_add(sums[r], i8_add(i8_pair_sums(first), i8_pair_sums(second)));
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        int32_t low = halves[(size_t)r * halves_stride], high = halves[(size_t)r * halves_stride + 1];
        i8 sum = sums_in_16_bits(f) ? i8_pair_sums(sums[r]) : sums[r];
        if (f == GF_Q4) sum = i8_sub(sum, i8_set(8 * (low + high)));
        if (f == GF_Q5) sum = i8_sub(sum, i8_set(16 * (low + high)));
        if (f == GF_Q4Z) sum = i8_sub(sum, i8_mul(i8_load_u8(record + 32), i8_set(low + high)));
        if (f == GF_Q6K) {
            i8 first = i8_mul(i8_sub(half[r], i8_set(32 * low)), i8_load_s8((const int8_t *)record));
            sum = i8_add(first, i8_mul(i8_sub(sum, i8_set(32 * high)), i8_load_s8((const int8_t *)record + 8)));
        }
        sums[r] = sum;
    }
}

/* Write the results of a panel for one row: sums + bias, plus residual. */
INLINE void finish_panel(const Op *op, int row, int o, f8 sums) {
    size_t at = (size_t)row * (size_t)op->n_out + (size_t)o;
    if (o + PANEL <= op->n_out) {
        if (op->bias != NULL) sums = f8_add(sums, f8_load(op->bias + o));
        if (op->residual != NULL) sums = f8_add(f8_load(op->residual + at), sums);
        f8_store((float *)op->y + at, sums);
        return;
    }
    float each[PANEL];
    f8_store(each, sums);
    for (int r = 0; o + r < op->n_out; r++) {
        if (op->bias != NULL) each[r] += op->bias[o + r];
        ((float *)op->y)[at + (size_t)r] = op->residual == NULL ? each[r] : op->residual[at + (size_t)r] + each[r];
    }
}

/* Some panels for `rows` rows. A panel is one stream of memory, and the next panel continues it. */
INLINE void packed_rows(const Op *op, int f, int rows, const Activations *a, int row, int begin, int end) {
    size_t n_in = (size_t)op->n_in, groups = (size_t)a->groups;
    const uint8_t *record = (const uint8_t *)op->w + (size_t)(begin / PANEL) * panel_bytes(f, a->groups), *super = record;
    for (int o = begin; o < end; o += PANEL) {
        f8 y[4];
        for (int r = 0; r < rows; r++) y[r] = f8_zero();
        for (size_t g = 0; g < groups; g++, record += group_bytes(f)) {
            if (super_bytes(f) && g % SUPER == 0) super = record, record += super_bytes(f);
            for (int line = 0; line < group_bytes(f); line += 64) prefetch(record + PREFETCH + line);
            size_t at = (size_t)row * groups + g;
            i8 sums[4];
            f8 s, m = f8_zero();
            group_sums(f, rows, record, a->xq + (size_t)row * n_in + g * GROUP, n_in, a->halves + 2 * at, 2 * groups, sums);
            scales(f, super, record, &s, &m);
            for (int r = 0; r < rows; r++) {
                y[r] = f8_fma(f8_from_int(sums[r]), f8_mul(s, f8_set(a->xs[at + (size_t)r * groups])), y[r]);
                if (has_minimum(f)) y[r] = f8_fma(m, f8_set(a->sx[at + (size_t)r * groups]), y[r]);
            }
        }
        for (int r = 0; r < rows; r++) finish_panel(op, row + r, o, y[r]);
    }
}

/* The formats whose integers fit maddubs without overflow for a complete group stay bytes; the others become int16. */
INLINE int tiles_of_bytes(int f) { return f == GF_Q4 || f == GF_Q4M || f == GF_Q4Z || f == GF_Q4K; }

typedef struct {
    uint8_t w[TILE_GROUPS][2 * CHUNKS * 64]; /* of each group: for each chunk (pair of inputs), both panels */
    f8 s[TILE_GROUPS][2], m[TILE_GROUPS][2];
    i8 zero[TILE_GROUPS][2];
} Tile;

INLINE void unpack_tile(int f, const uint8_t *panels[2], int g, int n, Tile *tile) {
    for (int i = 0; i < n; i++)
        for (int p = 0; p < 2; p++) {
            const uint8_t *record = panels[p] + group_offset(f, g + i);
            i8 w[CHUNKS];
            tile->m[i][p] = f8_zero();
            scales(f, panels[p] + super_offset(f, g + i), record, &tile->s[i][p], &tile->m[i][p]);
            for (int c = 0; c < 4; c++) unpack(f, record, c, w + 2 * c);
            if (tiles_of_bytes(f)) {
                for (int c = 0; c < CHUNKS; c++) i8_store(tile->w[i] + 64 * c + 32 * p, w[c]);
                tile->zero[i][p] = f == GF_Q4 ? i8_set(8) : f == GF_Q4Z ? i8_load_u8(record + 32) : i8_zero();
                continue;
            }
            for (int c = 0; c < CHUNKS; c++) {
                i8 low, high;
                if (f == GF_Q6K || f == GF_Q5) w[c] = b32_sub(w[c], i8_set_bytes(f == GF_Q5 ? 16 : 32));
                h16_widen(w[c], &low, &high);
                if (f == GF_Q6K) {
                    i8 sc = i8_load_s8((const int8_t *)record + 8 * (c / 4));
                    sc = h16_twice(sc);
                    low = h16_mul(low, sc), high = h16_mul(high, sc);
                }
                i8_store(tile->w[i] + 128 * c + 32 * p, low);
                i8_store(tile->w[i] + 128 * c + 64 + 32 * p, high);
            }
        }
}

INLINE i8 two_halves(const int16_t *x) {
    int32_t both;
    memcpy(&both, x, 4);
    return i8_set(both);
}

/* Add `n` groups of 2 panels to the results of `rows` rows. kept: [rows][2]. */
INLINE void multiply_tile(int f, int rows, const Activations *a, const Tile *tile, int row, int g, int n, f8 *kept) {
    size_t n_in = (size_t)a->groups * GROUP, groups = (size_t)a->groups;
    f8 y[4][2];
    for (int r = 0; r < rows; r++) y[r][0] = kept[2 * r], y[r][1] = kept[2 * r + 1];
    for (int i = 0; i < n; i++) {
        i8 sums[4][2];
        const uint8_t *w = tile->w[i];
        size_t at = (size_t)row * n_in + (size_t)(g + i) * GROUP;
        for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = i8_zero();
        if (tiles_of_bytes(f)) {
            for (int c = 0; c < CHUNKS; c++) {
                i8 w0 = i8_load(w + 64 * c), w1 = i8_load(w + 64 * c + 32);
                for (int r = 0; r < rows; r++) {
                    i8 x = four_bytes(a->xq + at + (size_t)r * n_in + 4 * c);
                    sums[r][0] = hide_from_optimizer(h16_add(sums[r][0], h16_pairs(w0, x)));
                    sums[r][1] = hide_from_optimizer(h16_add(sums[r][1], h16_pairs(w1, x)));
                }
            }
        } else {
            for (int c = 0; c < 2 * CHUNKS; c++) {
                i8 w0 = i8_load(w + 64 * c), w1 = i8_load(w + 64 * c + 32);
                for (int r = 0; r < rows; r++) {
                    i8 x = two_halves(a->x16 + at + (size_t)r * n_in + 2 * c);
                    sums[r][0] = hide_from_optimizer(i8_add(sums[r][0], i8_pairs(w0, x)));
                    sums[r][1] = hide_from_optimizer(i8_add(sums[r][1], i8_pairs(w1, x)));
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            size_t x = (size_t)(row + r) * groups + (size_t)(g + i);
            f8 xs = f8_set(a->xs[x]);
            for (int p = 0; p < 2; p++) {
                i8 sum = sums[r][p];
                if (tiles_of_bytes(f)) sum = i8_pair_sums(sum);
                if (f == GF_Q4 || f == GF_Q4Z)
                    sum = i8_sub(sum, i8_mul(tile->zero[i][p], i8_set(a->halves[2 * x] + a->halves[2 * x + 1])));
                y[r][p] = f8_fma(f8_from_int(sum), f8_mul(tile->s[i][p], xs), y[r][p]);
                if (has_minimum(f)) y[r][p] = f8_fma(tile->m[i][p], f8_set(a->sx[x]), y[r][p]);
            }
        }
    }
    for (int r = 0; r < rows; r++) kept[2 * r] = y[r][0], kept[2 * r + 1] = y[r][1];
}

/* scratch: Tile | results [TILE_ROWS][2] */
INLINE void packed_tiles(const Op *op, int f, const Activations *a, int begin, int end, void *scratch) {
    Tile *tile = scratch;
    f8 *kept = (f8 *)(tile + 1);
    size_t bytes = panel_bytes(f, a->groups);
    for (int o = begin; o < end; o += 2 * PANEL) {
        const uint8_t *panels[2] = {(const uint8_t *)op->w + (size_t)(o / PANEL) * bytes};
        int two = o + PANEL < end;
        panels[1] = two ? panels[0] + bytes : panels[0];
        for (int row = 0; row < op->rows; row += TILE_ROWS) {
            int rows = op->rows - row < TILE_ROWS ? op->rows - row : TILE_ROWS;
            for (int i = 0; i < 2 * rows; i++) kept[i] = f8_zero();
            for (int g = 0; g < a->groups; g += TILE_GROUPS) {
                int n = a->groups - g < TILE_GROUPS ? a->groups - g : TILE_GROUPS, r = 0;
                unpack_tile(f, panels, g, n, tile);
                for (; r + 4 <= rows; r += 4) multiply_tile(f, 4, a, tile, row + r, g, n, kept + 2 * r);
                for (; r < rows; r++) multiply_tile(f, 1, a, tile, row + r, g, n, kept + 2 * r);
            }
            for (int r = 0; r < rows; r++) {
                finish_panel(op, row + r, o, kept[2 * r]);
                if (two) finish_panel(op, row + r, o + PANEL, kept[2 * r + 1]);
            }
        }
    }
}

INLINE void packed_format(const Op *op, int f, int thread, int n_threads, void *scratch) {
    Activations a = activations(op->x, op->rows, op->n_in);
    int begin, end, row = 0;
    share(op->n_out, PANEL, thread, n_threads, &begin, &end);
    if (op->rows > FEW_PACKED) {
        packed_tiles(op, f, &a, begin, end, scratch);
        return;
    }
    for (; row + 4 <= op->rows; row += 4) packed_rows(op, f, 4, &a, row, begin, end);
    for (; row + 2 <= op->rows; row += 2) packed_rows(op, f, 2, &a, row, begin, end);
    if (row < op->rows) packed_rows(op, f, 1, &a, row, begin, end);
}

/* The values of some rows: integer x scale, rounded, plus the minimum, rounded. */
INLINE void decode_rows(const Op *op, int f, int thread, int n_threads) {
    int begin, end, groups = op->n_in / GROUP;
    share(op->rows, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        int64_t id = ((const int64_t *)op->x)[i];
        const uint8_t *panel = (const uint8_t *)op->w + (size_t)(id / PANEL) * panel_bytes(f, groups);
        int row = (int)(id % PANEL);
        float *y = (float *)op->y + (size_t)i * (size_t)op->n_in;
        for (int g = 0; g < groups; g++, y += GROUP) {
            const uint8_t *record = panel + group_offset(f, g);
            f8 s, m = f8_zero();
            i8 w[CHUNKS];
            uint8_t bytes[CHUNKS][32];
            float scale[PANEL], minimum[PANEL];
            scales(f, panel + super_offset(f, g), record, &s, &m);
            f8_store(scale, s), f8_store(minimum, m);
            for (int c = 0; c < 4; c++) unpack(f, record, c, w + 2 * c);
            for (int c = 0; c < CHUNKS; c++) i8_store(bytes[c], w[c]);
            int zero = f == GF_Q4 ? 8 : f == GF_Q5 ? 16 : f == GF_Q6K ? 32 : f == GF_Q4Z ? record[32 + row] : 0;
            for (int j = 0; j < GROUP; j++) {
                uint8_t byte = bytes[j / 4][4 * row + j % 4];
                int q = is_int8(f) || is_table(f) ? (int8_t)byte : byte - zero;
                if (f == GF_Q6K) q *= (int8_t)record[8 * (j / 16) + row];
                y[j] = (float)q * scale[row];
                if (has_minimum(f)) y[j] += minimum[row];
            }
        }
    }
}

#define PACKED(f)                                                                              \
    static void linear_##f(const Op *op, int thread, int n_threads, void *scratch) {           \
        if (op->kind == GF_LOOK_UP) decode_rows(op, f, thread, n_threads);                     \
        else packed_format(op, f, thread, n_threads, scratch);                                 \
    }
PACKED(GF_Q8) PACKED(GF_Q8F) PACKED(GF_Q4) PACKED(GF_Q4M) PACKED(GF_Q4Z) PACKED(GF_Q5) PACKED(GF_Q5M)
PACKED(GF_Q4K) PACKED(GF_Q5K) PACKED(GF_Q6K) PACKED(GF_IQ4NL) PACKED(GF_IQ4XS) PACKED(GF_MXFP4)

static void linear_packed(const Op *op, int thread, int n_threads, void *scratch) {
    static const OpFunction functions[GF_FORMATS] = {
        [GF_Q8] = linear_GF_Q8,     [GF_Q8F] = linear_GF_Q8F,     [GF_Q4] = linear_GF_Q4,       [GF_Q4M] = linear_GF_Q4M,
        [GF_Q4Z] = linear_GF_Q4Z,   [GF_Q5] = linear_GF_Q5,       [GF_Q5M] = linear_GF_Q5M,     [GF_Q4K] = linear_GF_Q4K,
        [GF_Q5K] = linear_GF_Q5K,   [GF_Q6K] = linear_GF_Q6K,     [GF_IQ4NL] = linear_GF_IQ4NL, [GF_IQ4XS] = linear_GF_IQ4XS,
        [GF_MXFP4] = linear_GF_MXFP4,
    };
    functions[op->format](op, thread, n_threads, scratch);
}
#endif
