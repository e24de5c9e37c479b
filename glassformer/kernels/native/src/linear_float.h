/* Products with float matrices [n_out, n_in] as they lie in memory: float32, bfloat16 or float16, summed in float32.

   Lane j of a sum adds inputs j, 8 + j, 16 + j, ... of float32 and float16, and 2j, 2j + 1, 16 + 2j, ... of bfloat16, in
   this order; then the lanes are added (f8_sum). So a result does not depend on the number of rows or threads.

   Up to 3 rows: each weight is read once, and widened in a register. More: a block of the matrix is widened to float32
   in the cache, and multiplied with 4 rows x 3 outputs at a time, whose 12 sums stay in registers. */
#ifndef GF_LINEAR_FLOAT_H
#define GF_LINEAR_FLOAT_H

#include "op.h"
#include "simd.h"

#define FEW_ROWS 3
#define ROWS_AHEAD 8 /* how far ahead weights are fetched */
#define BLOCK_OUT 24  /* outputs of a block */
#define BLOCK_IN 1024 /* inputs of a block */
#define MAX_BLOCK_ROWS 256
#define ORDERED_BYTES (2 << 20) /* of the rows of a block, in the order of the lanes */
#define MAX_IN 65536

INLINE const char *matrix_row(const Op *op, int o) {
    return (const char *)op->w + (size_t)o * (size_t)op->n_in * (op->format == GF_F32 ? 4 : 2);
}

/* 16 numbers of a row, in the order of the lanes. */
INLINE void widen16(int format, const char *row, int k, f8 w[2]) {
    if (format == GF_BF16) {
        f8_load_bf16((const uint16_t *)row + k, &w[0], &w[1]);
    } else if (format == GF_F16) {
        w[0] = f8_load_f16((const uint16_t *)row + k), w[1] = f8_load_f16((const uint16_t *)row + k + 8);
    } else {
        w[0] = f8_load((const float *)row + k), w[1] = f8_load((const float *)row + k + 8);
    }
}

/* The last numbers of a row, filled up with zeros to 16. */
INLINE void widen_tail(int format, const char *row, int k, int n, f8 w[2]) {
    char tail[64] = {0};
    size_t size = format == GF_F32 ? 4 : 2;
    memcpy(tail, row + (size_t)k * size, (size_t)(n - k) * size);
    widen16(format, tail, 0, w);
}

/* Copy a row of x in the order of the lanes, filled up with zeros to a multiple of 16. */
INLINE void order_lanes(int format, const float *x, float *y, int n) {
    for (int k = 0; k < n; k += 16) {
        float part[16] = {0};
        const float *from = x + k;
        if (n - k < 16) {
            memcpy(part, from, (size_t)(n - k) * 4);
            from = part;
        }
        if (format != GF_BF16) memmove(y + k, from, 64);
        else
            for (int j = 0; j < 8; j++) y[k + j] = from[2 * j], y[k + 8 + j] = from[2 * j + 1];
    }
}

INLINE void finish(const Op *op, int row, int o, float sum) {
    size_t at = (size_t)row * (size_t)op->n_out + (size_t)o;
    if (op->bias != NULL) sum += op->bias[o];
    ((float *)op->y)[at] = op->residual == NULL ? sum : op->residual[at] + sum;
}

/* `outs` outputs of `rows` rows; x in the order of the lanes, with stride `stride`. */
INLINE void few_rows(const Op *op, int format, int rows, int outs, const float *x, size_t stride, int o) {
    f8 sums[FEW_ROWS][4];
    const char *w[4];
    int whole = op->n_in & ~15;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < outs; c++) sums[r][c] = f8_zero();
    for (int c = 0; c < outs; c++) w[c] = matrix_row(op, o + c);
    size_t row_bytes = (size_t)(matrix_row(op, 1) - matrix_row(op, 0)), ahead = ROWS_AHEAD * row_bytes;
    for (int k = 0; k < whole; k += 16)
        for (int c = 0; c < outs; c++) {
            f8 part[2];
            widen16(format, w[c], k, part);
            if (format == GF_F32 || k % 32 == 0) prefetch(w[c] + ahead + (size_t)k * row_bytes / (size_t)op->n_in);
            for (int r = 0; r < rows; r++) {
                sums[r][c] = f8_fma(part[0], f8_load(x + r * stride + k), sums[r][c]);
                sums[r][c] = f8_fma(part[1], f8_load(x + r * stride + k + 8), sums[r][c]);
            }
        }
    if (whole < op->n_in)
        for (int c = 0; c < outs; c++) {
            f8 part[2];
            widen_tail(format, w[c], whole, op->n_in, part);
            for (int r = 0; r < rows; r++) {
                sums[r][c] = f8_fma(part[0], f8_load(x + r * stride + whole), sums[r][c]);
                sums[r][c] = f8_fma(part[1], f8_load(x + r * stride + whole + 8), sums[r][c]);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < outs; c++) finish(op, r, o + c, f8_sum(sums[r][c]));
}

INLINE void few_rows_of(const Op *op, int format, int rows, int begin, int end, const float *x, size_t stride) {
    int o = begin;
    for (; o + 4 <= end; o += 4) few_rows(op, format, rows, 4, x, stride, o);
    for (; o < end; o++) few_rows(op, format, rows, 1, x, stride, o);
}

/* Add the products of `n` inputs to the sums of rows x outs outputs. w: [outs][BLOCK_IN]. */
INLINE void tile(int rows, int outs, const float *x, size_t stride, const float *w, size_t w_stride, int n, f8 *kept) {
    f8 sums[4][3];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < outs; c++) sums[r][c] = kept[r * BLOCK_OUT + c];
    for (int k = 0; k < n; k += 8) {
        f8 part[3];
        for (int c = 0; c < outs; c++) part[c] = f8_load(w + c * w_stride + k);
        for (int r = 0; r < rows; r++) {
            f8 one = f8_load(x + r * stride + k);
            for (int c = 0; c < outs; c++) sums[r][c] = f8_fma(part[c], one, sums[r][c]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < outs; c++) kept[r * BLOCK_OUT + c] = sums[r][c];
}

INLINE void tile_rows(int rows, const float *x, size_t stride, const float *w, size_t w_stride, int outs, int n, f8 *kept) {
    int c = 0;
    for (; c + 3 <= outs; c += 3) tile(rows, 3, x, stride, w + c * w_stride, w_stride, n, kept + c);
    for (; c < outs; c++) tile(rows, 1, x, stride, w + c * w_stride, w_stride, n, kept + c);
}

/* Rows that are too wide for `ordered` are ordered by parts of BLOCK_IN inputs, again for each block of outputs.
   scratch: sums [MAX_BLOCK_ROWS][BLOCK_OUT] | widened weights [BLOCK_OUT][BLOCK_IN] | x of ORDERED_BYTES */
static void many_rows(const Op *op, int format, int begin, int end, void *scratch) {
    f8 *sums = scratch;
    float *wide = (float *)(sums + MAX_BLOCK_ROWS * BLOCK_OUT), *ordered = wide + BLOCK_OUT * BLOCK_IN;
    int n_in = op->n_in, padded_in = (n_in + 15) & ~15;
    int block_rows = (ORDERED_BYTES / 4 / padded_in) & ~3, in_parts = block_rows == 0;
    int in_order = format != GF_BF16 && padded_in == n_in;
    if (in_parts) block_rows = ORDERED_BYTES / 4 / BLOCK_IN;
    if (block_rows > MAX_BLOCK_ROWS) block_rows = MAX_BLOCK_ROWS;
    for (int row = 0; row < op->rows; row += block_rows) {
        int rows = op->rows - row < block_rows ? op->rows - row : block_rows;
        const float *x = (const float *)op->x + (size_t)row * (size_t)n_in;
        size_t stride = (size_t)n_in;
        if (!in_order && !in_parts) {
            for (int r = 0; r < rows; r++) order_lanes(format, x + r * stride, ordered + (size_t)r * (size_t)padded_in, n_in);
            x = ordered, stride = (size_t)padded_in;
        }
        for (int o = begin; o < end; o += BLOCK_OUT) {
            int outs = end - o < BLOCK_OUT ? end - o : BLOCK_OUT;
            for (int i = 0; i < rows * BLOCK_OUT; i++) sums[i] = f8_zero();
            for (int k = 0; k < padded_in; k += BLOCK_IN) {
                int n = padded_in - k < BLOCK_IN ? padded_in - k : BLOCK_IN, r = 0;
                const float *w = (const float *)matrix_row(op, o) + k, *part_x = x + k;
                size_t w_stride = (size_t)n_in, x_stride = stride;
                if (!in_order && in_parts) {
                    for (int j = 0; j < rows; j++)
                        order_lanes(format, part_x + j * stride, ordered + j * BLOCK_IN, n_in - k < BLOCK_IN ? n_in - k : BLOCK_IN);
                    part_x = ordered, x_stride = BLOCK_IN;
                }
                if (format != GF_F32 || padded_in != n_in) {
                    for (int c = 0; c < outs; c++)
                        for (int j = 0; j < n; j += 16) {
                            f8 part[2];
                            if (k + j + 16 <= n_in) widen16(format, matrix_row(op, o + c), k + j, part);
                            else widen_tail(format, matrix_row(op, o + c), k + j, n_in, part);
                            f8_store(wide + c * BLOCK_IN + j, part[0]);
                            f8_store(wide + c * BLOCK_IN + j + 8, part[1]);
                        }
                    w = wide, w_stride = BLOCK_IN;
                }
                for (; r + 4 <= rows; r += 4) tile_rows(4, part_x + r * x_stride, x_stride, w, w_stride, outs, n, sums + r * BLOCK_OUT);
                for (; r < rows; r++) tile_rows(1, part_x + r * x_stride, x_stride, w, w_stride, outs, n, sums + r * BLOCK_OUT);
            }
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < outs; c++) finish(op, row + r, o + c, f8_sum(sums[r * BLOCK_OUT + c]));
        }
    }
}

INLINE void linear_format(const Op *op, int format, int begin, int end, void *scratch) {
    if (op->rows > FEW_ROWS || op->n_in > MAX_IN) {
        many_rows(op, format, begin, end, scratch);
        return;
    }
    const float *x = op->x;
    size_t stride = (size_t)op->n_in;
    if (format == GF_BF16 || op->n_in % 16) {
        stride = (stride + 15) & ~(size_t)15;
        for (int r = 0; r < op->rows; r++) order_lanes(format, x + r * op->n_in, (float *)scratch + r * stride, op->n_in);
        x = scratch;
    }
    if (op->rows == 1) few_rows_of(op, format, 1, begin, end, x, stride);
    else if (op->rows == 2) few_rows_of(op, format, 2, begin, end, x, stride);
    else few_rows_of(op, format, 3, begin, end, x, stride);
}

static void linear_float(const Op *op, int thread, int n_threads, void *scratch) {
    int begin, end;
    share(op->n_out, BLOCK_OUT, thread, n_threads, &begin, &end);
    if (begin == end) return;
    if (op->format == GF_F32) linear_format(op, GF_F32, begin, end, scratch);
    else if (op->format == GF_BF16) linear_format(op, GF_BF16, begin, end, scratch);
    else linear_format(op, GF_F16, begin, end, scratch);
}
#endif
