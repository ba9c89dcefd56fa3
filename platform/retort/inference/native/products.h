/* Products with whole matrices, what goes before them (norms, roundings) and what comes after (sums, activations). */
#pragma once

#include <math.h>

#include "tiles.h"

enum { STORE = 0, ADD = 1, ACTIVATE = 2 };

typedef struct {
    const Matrix *matrix;
    int32_t precision, mode, batch;
    const float *x;       /* fp32 activations */
    const void *narrow;   /* bf16 or int16 activations */
    const float *scales;  /* of the int16 activations, one a column */
    int32_t x_stride;
    float *y;
    int32_t y_stride;
} Product;

INLINE finish(const Product *job, const int columns, const int panels, int32_t column, int32_t panel,
            lanes sums[MAX_TILE][MAX_TILE]) {
    const Matrix *m = job->matrix;
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) {
        float scale = job->precision == INT8 ? job->scales[column + c] : 1.0f;
        lanes out[MAX_TILE];
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            out[p] = sums[c][p];
            if (job->precision == INT8) out[p] *= scale;
            if (m->bias) out[p] += *(const lanes *)(m->bias + (panel + p) * LANES);
        }
        float *y = job->y + (size_t)(column + c) * job->y_stride;
        if (job->mode == ACTIVATE) {
            /* Panels alternate between gate and up: silu(gate) * up. */
#pragma GCC unroll 4
            for (int p = 0; p + 1 < panels; p += 2)
                *(lanes *)(y + (panel + p) / 2 * LANES) = out[p] / (1.0f + exponential(-out[p])) * out[p + 1];
            continue;
        }
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            lanes *to = (lanes *)(y + (panel + p) * LANES);
            *to = job->mode == ADD ? *to + out[p] : out[p];
        }
    }
}

/* A kernel for each tile: COLUMNS rows of activations times PANELS panels of weights. */
typedef void Kernel(const Product *job, int32_t column, int32_t panel);

#define KERNEL(COLUMNS, PANELS)                                                                                       \
    static __attribute__((noinline)) void product_##COLUMNS##x##PANELS(const Product *job, int32_t column,            \
                                                                       int32_t panel) {                               \
        lanes sums[MAX_TILE][MAX_TILE];                                                                               \
        size_t at = (size_t)panel * job->matrix->inputs * LANES, row = (size_t)column * job->x_stride;                \
        if (job->precision == FP32)                                                                                   \
            tile_fp32(COLUMNS, PANELS, job->x + row, job->x_stride, (const float *)job->matrix->panels + at,          \
                      job->matrix->inputs, sums);                                                                     \
        else if (job->precision == BF16)                                                                              \
            tile_bf16(COLUMNS, PANELS, (const uint16_t *)job->narrow + row, job->x_stride,                            \
                      (const uint16_t *)job->matrix->panels + at, job->matrix->inputs, sums);                         \
        else                                                                                                          \
            tile_int8(COLUMNS, PANELS, (const int16_t *)job->narrow + row, job->x_stride,                             \
                      (const int8_t *)job->matrix->panels + at, job->matrix->scales + at / GROUP,                     \
                      job->matrix->inputs, sums);                                                                     \
        finish(job, COLUMNS, PANELS, column, panel, sums);                                                            \
    }

KERNEL(1, 2) KERNEL(1, 4) KERNEL(1, 8)
KERNEL(2, 2) KERNEL(2, 4) KERNEL(2, 8)
KERNEL(3, 2) KERNEL(3, 4) KERNEL(3, 8)
KERNEL(4, 2) KERNEL(4, 4)
KERNEL(8, 2)

static Kernel *const KERNELS[9][9] = {
    [1] = {[2] = product_1x2, [4] = product_1x4, [8] = product_1x8},
    [2] = {[2] = product_2x2, [4] = product_2x4, [8] = product_2x8},
    [3] = {[2] = product_3x2, [4] = product_3x4, [8] = product_3x8},
    [4] = {[2] = product_4x2, [4] = product_4x4},
    [8] = {[2] = product_8x2},
};

/* Panels [begin, end), an even number, of a product for all columns. One stream and its null conditions, up to three
 * columns, pass each weight once; of more columns, a block of panels stays in cache while they pass. */
static void multiply(const Product *job, int32_t begin, int32_t end) {
    const int32_t batch = job->batch;
    /* int8 keeps two sums an output: more than one column of eight panels would not fit into registers. */
    const int32_t few = job->precision == INT8 && batch > 1 ? 4 : 8;
    const int32_t widest = batch <= 3 ? few : 4;
    for (int32_t panel = begin, width; panel < end; panel += width) {
        for (width = widest; width > end - panel;) width /= 2;
        for (int32_t column = 0, rows; column < batch; column += rows) {
            const int32_t left = batch - column;
            rows = left >= 8 ? 8 : left >= 4 ? 4 : left;
            const int32_t panels = rows == 8 ? 2 : width;
            for (int32_t at = panel; at < panel + width; at += panels) KERNELS[rows][panels](job, column, at);
        }
    }
}

/* This thread's share of a product. Gate and up panels are kept in pairs. */
static void multiply_share(const Product *job, int32_t thread, int32_t threads) {
    int32_t units = (job->matrix->outputs / LANES + 1) / 2;
    int32_t begin = (int32_t)((int64_t)units * thread / threads) * 2;
    int32_t end = (int32_t)((int64_t)units * (thread + 1) / threads) * 2;
    int32_t panels = job->matrix->outputs / LANES;
    multiply(job, begin, end < panels ? end : panels);
}

/* Round activations [batch][stride] to what the products take. */
static void narrow(int32_t precision, const float *x, int32_t stride, int32_t batch, Scratch *scratch) {
    if (precision == FP32) return;
    for (int32_t c = 0; c < batch; c++) {
        const float *from = x + (size_t)c * stride;
        if (precision == BF16) {
            uint16_t *to = (uint16_t *)scratch->narrow + (size_t)c * stride;
            for (int32_t k = 0; k < stride; k++) to[k] = to_bf16(from[k]);
        } else {
            int16_t *to = (int16_t *)scratch->narrow + (size_t)c * stride;
            /* Strides are whole groups, of two vectors, and a maximum of bit patterns is one of sizes. */
            integers sizes[GROUP / LANES] = {{0}};
            for (int32_t k = 0; k < stride; k += GROUP) {
#pragma GCC unroll 2
                for (int i = 0; i < GROUP / LANES; i++)
                    sizes[i] = larger(sizes[i], *(const integers *)(from + k + i * LANES) & 0x7fffffff);
            }
            int32_t bits = 0;
            for (int l = 0; l < LANES; l++) {
                const int32_t here = larger(sizes[0], sizes[1])[l];
                bits = here > bits ? here : bits;
            }
            float largest;
            memcpy(&largest, &bits, 4);
            float inverse = largest > 0 ? QUANTISED_MAX / largest : 0.0f;
            scratch->scales[c] = largest / QUANTISED_MAX;
            for (int32_t k = 0; k < stride; k++) {
                float scaled = from[k] * inverse;
                to[k] = (int16_t)(scaled + (scaled < 0 ? -0.5f : 0.5f));
            }
        }
    }
}

static void rms_norm(const Model *m, const float *x, int32_t stride, int32_t batch, const float *weight, float *to) {
    for (int32_t c = 0; c < batch; c++) {
        const float *from = x + (size_t)c * stride;
        lanes squares = spread(0.0f);
        for (int32_t k = 0; k < stride; k += LANES) squares += *(const lanes *)(from + k) * *(const lanes *)(from + k);
        float sum = 0.0f;
        for (int l = 0; l < LANES; l++) sum += squares[l];
        float scale = 1.0f / sqrtf(sum / (float)m->dim + m->eps);
        for (int32_t k = 0; k < stride; k += LANES)
            *(lanes *)(to + (size_t)c * stride + k) = *(const lanes *)(from + k) * scale * *(const lanes *)(weight + k);
    }
}
