/* Products of a few columns of activations and a few panels of weights, in registers. */
#pragma once

#include "engine.h"

/* Fixed sizes of what is kept for a tile: of arrays whose size is a variable, even one that is known when the tile is
 * inlined, GCC makes memory, and every sum would be loaded and stored for each product. */
#define MAX_TILE 8

/* What a product of `columns` rows and `panels` panels leaves in `sums`; the order of each sum is that of its inputs. */
INLINE tile_fp32(const int columns, const int panels, const float *x, int32_t x_stride, const float *w, int32_t inputs,
               lanes sums[MAX_TILE][MAX_TILE]) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) sums[c][p] = spread(0.0f);
    for (int32_t k = 0; k < inputs; k++) {
        lanes spread_x[MAX_TILE];
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) spread_x[c] = spread(x[(size_t)c * x_stride + k]);
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            const lanes weights = *(const lanes *)(w + (size_t)p * inputs * LANES + (size_t)k * LANES);
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++) {
#if defined(__AVX512F__)
                sums[c][p] = (lanes)_mm512_fmadd_ps((__m512)spread_x[c], (__m512)weights, (__m512)sums[c][p]);
#else
                sums[c][p] += spread_x[c] * weights;
#endif
            }
        }
    }
}

INLINE tile_bf16(const int columns, const int panels, const uint16_t *x, int32_t x_stride, const uint16_t *w,
               int32_t inputs, lanes sums[MAX_TILE][MAX_TILE]) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) sums[c][p] = spread(0.0f);
    for (int32_t k = 0; k < inputs; k += 2) {
#if defined(__AVX512BF16__)
        __m512bh spread_two[MAX_TILE];
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) {
            int32_t two;
            memcpy(&two, x + (size_t)c * x_stride + k, 4);
            spread_two[c] = (__m512bh)_mm512_set1_epi32(two);
        }
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            const __m512bh weights = (__m512bh)_mm512_loadu_si512(w + (size_t)p * inputs * LANES + (size_t)k * LANES);
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++)
                sums[c][p] = (lanes)_mm512_dpbf16_ps((__m512)sums[c][p], weights, spread_two[c]);
        }
#else
        for (int c = 0; c < columns; c++)
            for (int p = 0; p < panels; p++)
                for (int half = 0; half < 2; half++) {
                    float value = from_bf16(x[(size_t)c * x_stride + k + half]);
                    const uint16_t *panel = w + (size_t)p * inputs * LANES + (size_t)k * LANES;
                    for (int l = 0; l < LANES; l++) sums[c][p][l] += value * from_bf16(panel[2 * l + half]);
                }
#endif
    }
}

#define LINE 64
#define PAGE 4096
#define FURTHER_ON 4 /* groups */

/* Ask for weights before they are needed. The processor foresees a stream to the end of its page; panels that are longer
 * than that, each a stream of its own, are more than it follows. Two columns ask for a group a little further on in the
 * same panels; more of them, which stay longer with each group, for the next tile's: so each was fastest. */
INLINE fetch_ahead(const int columns, const int panels, const int8_t *w, int32_t inputs) {
    const size_t panel = (size_t)inputs * LANES;
    if (columns == 1 || panel <= PAGE) return;
#pragma GCC unroll 8
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int at = 0; at < GROUP * LANES; at += LINE) {
            if (columns == 2) __builtin_prefetch(w + (size_t)p * panel + FURTHER_ON * GROUP * LANES + at, 0, 3);
            else __builtin_prefetch(w + (size_t)(panels + p) * panel + at, 0, 2);
        }
}

INLINE tile_int8(const int columns, const int panels, const int16_t *x, int32_t x_stride, const int8_t *w,
               const float *scales, int32_t inputs, lanes sums[MAX_TILE][MAX_TILE]) {
    const int32_t groups = inputs / GROUP;
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) sums[c][p] = spread(0.0f);
    for (int32_t g = 0; g < groups; g++) {
        integers totals[MAX_TILE][MAX_TILE];
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++) totals[c][p] = (integers){0};
        fetch_ahead(columns, panels, w + (size_t)g * GROUP * LANES, inputs);
        for (int32_t k = g * GROUP; k < (g + 1) * GROUP; k += 2) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
            __m512i spread_two[MAX_TILE];
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++) {
                int32_t two;
                memcpy(&two, x + (size_t)c * x_stride + k, 4);
                spread_two[c] = _mm512_set1_epi32(two);
            }
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++) {
                const __m512i weights = _mm512_cvtepi8_epi16(
                    _mm256_loadu_si256((const __m256i *)(w + (size_t)p * inputs * LANES + (size_t)k * LANES)));
#pragma GCC unroll 8
                for (int c = 0; c < columns; c++)
                    totals[c][p] = (integers)_mm512_dpwssd_epi32((__m512i)totals[c][p], weights, spread_two[c]);
            }
#else
            for (int c = 0; c < columns; c++)
                for (int p = 0; p < panels; p++)
                    for (int half = 0; half < 2; half++) {
                        int32_t value = x[(size_t)c * x_stride + k + half];
                        const int8_t *panel = w + (size_t)p * inputs * LANES + (size_t)k * LANES;
                        for (int l = 0; l < LANES; l++) totals[c][p][l] += value * panel[2 * l + half];
                    }
#endif
        }
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            const lanes scale = *(const lanes *)(scales + ((size_t)p * groups + g) * LANES);
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++) {
#if defined(__AVX512F__)
                sums[c][p] = (lanes)_mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)totals[c][p]), (__m512)scale,
                                                    (__m512)sums[c][p]);
#else
                sums[c][p] += __builtin_convertvector(totals[c][p], lanes) * scale;
#endif
            }
        }
    }
}
