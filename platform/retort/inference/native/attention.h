/* Rotary positions, keeping keys and values, and attention of one query at a time. */
#pragma once

#include <math.h>

#include "engine.h"

static void rotate(float *x, const float *cosine, const float *sine, int32_t head_dim) {
    int32_t half = head_dim / 2;
    for (int32_t d = 0; d < half; d++) {
        float first = x[d], second = x[d + half];
        x[d] = first * cosine[d] - second * sine[d];
        x[d + half] = second * cosine[d] + first * sine[d];
    }
}

/* LANES numbers of a cache. */
static inline lanes kept(const int32_t precision, const void *cache, size_t at) {
    if (precision == FP32) return *(const lanes *)((const float *)cache + at);
#if defined(__AVX512F__)
    const __m256i bits = _mm256_loadu_si256((const __m256i *)((const uint16_t *)cache + at));
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#else
    typedef uint16_t narrow_lanes __attribute__((vector_size(2 * LANES), aligned(2)));
    return (lanes)(__builtin_convertvector(*(const narrow_lanes *)((const uint16_t *)cache + at), integers) << 16);
#endif
}

#define BLOCKS 4 /* sums at a time: one alone would wait for itself at every addition */

/* Scores of `blocks` x LANES columns; each is one sum over the head's dimensions, in order. */
INLINE score(const Model *m, const int32_t precision, const int blocks, const float *query, const void *keys,
             float scale, float *scores) {
    lanes sums[BLOCKS];
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++) sums[b] = spread(0.0f);
    for (int32_t d = 0; d < m->head_dim; d++) {
        const lanes one = spread(query[d]);
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) sums[b] += one * kept(precision, keys, (size_t)d * m->max_columns + b * LANES);
    }
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++) *(lanes *)(scores + b * LANES) = sums[b] * scale;
}

/* The weighted sum over `length` columns of `blocks` x LANES of the values' dimensions. */
INLINE weigh(const Model *m, const int32_t precision, const int blocks, const float *scores, float inverse,
             const void *values, int32_t first, int32_t length, float *to) {
    lanes sums[BLOCKS];
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++) sums[b] = spread(0.0f);
    for (int32_t j = 0; j < length; j++) {
        const lanes weight = spread(scores[j] * inverse);
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++)
            sums[b] += weight * kept(precision, values, (size_t)j * m->head_dim + first + b * LANES);
    }
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++) *(lanes *)(to + first + b * LANES) = sums[b];
}

/* Scores of one query against `length` keys [head_dim][max_columns], softmax, and the weighted sum of the values. */
INLINE attend_in(const Model *m, const int32_t precision, const float *query, const void *keys, const void *values,
                 int32_t length, float *scores, float *to) {
    const int32_t head_dim = m->head_dim, padded = pad(length);
    const size_t size = precision == FP32 ? 4 : 2;
    const float scale = 1.0f / sqrtf((float)head_dim);
    float largest = -INFINITY;
    int32_t j = 0, d = 0;
    for (; j + BLOCKS * LANES <= padded; j += BLOCKS * LANES)
        score(m, precision, BLOCKS, query, (const char *)keys + j * size, scale, scores + j);
    for (; j < padded; j += GROUP)
        score(m, precision, GROUP / LANES, query, (const char *)keys + j * size, scale, scores + j);
    for (j = 0; j < length; j++) largest = scores[j] > largest ? scores[j] : largest;
    for (j = length; j < padded; j++) scores[j] = -INFINITY;
    lanes totals = spread(0.0f);
    for (j = 0; j < padded; j += LANES) {
        lanes weight = exponential(*(lanes *)(scores + j) - largest);
        *(lanes *)(scores + j) = weight;
        totals += weight;
    }
    float total = 0.0f;
    for (int l = 0; l < LANES; l++) total += totals[l];
    const float inverse = 1.0f / total;
    for (; d + BLOCKS * LANES <= head_dim; d += BLOCKS * LANES)
        weigh(m, precision, BLOCKS, scores, inverse, values, d, length, to);
    for (; d + LANES <= head_dim; d += LANES) weigh(m, precision, 1, scores, inverse, values, d, length, to);
    for (; d < head_dim; d++) {
        float sum = 0.0f;
        for (j = 0; j < length; j++) {
            const size_t at = (size_t)j * head_dim + d;
            sum += scores[j] * inverse *
                   (precision == FP32 ? ((const float *)values)[at] : from_bf16(((const uint16_t *)values)[at]));
        }
        to[d] = sum;
    }
}

static void attend(const Model *m, const float *query, const void *keys, const void *values, int32_t length,
                   float *scores, float *to) {
    if (m->precision == FP32) attend_in(m, FP32, query, keys, values, length, scores, to);
    else attend_in(m, BF16, query, keys, values, length, scores, to);
}

/* Keep the keys and values of one run of columns of one row for one key-value head; then attend with its queries,
 * unless keeping is all that is wanted. */
static void attend_unit(Engine *e, Layer *layer, int32_t run, int32_t kv_head, int only_keeps, Scratch *scratch) {
    const Model *m = &e->model;
    const int32_t head_dim = m->head_dim, group = m->num_heads / m->num_kv_heads;
    const int32_t begin = e->run_starts[run], end = e->run_starts[run + 1];
    const int32_t row = e->call.rows[begin];
    const size_t size = m->precision == FP32 ? 4 : 2;
    const size_t at = ((size_t)row * m->num_kv_heads + kv_head) * m->max_columns * head_dim * size;
    char *keys = (char *)layer->keys + at, *values = (char *)layer->values + at;
    for (int32_t c = begin; c < end; c++) {
        const int32_t position = e->call.positions[c];
        const float *cosine = m->cosine + (size_t)position * (head_dim / 2);
        const float *sine = m->sine + (size_t)position * (head_dim / 2);
        float *qkv = e->qkv + (size_t)c * e->qkv_stride;
        float *key = qkv + (m->num_heads + kv_head) * head_dim;
        const float *value = qkv + (m->num_heads + m->num_kv_heads + kv_head) * head_dim;
        rotate(key, cosine, sine, head_dim);
        for (int32_t d = 0; d < head_dim; d++) {
            if (m->precision == FP32) {
                ((float *)keys)[(size_t)d * m->max_columns + position] = key[d];
                ((float *)values)[(size_t)position * head_dim + d] = value[d];
            } else {
                ((uint16_t *)keys)[(size_t)d * m->max_columns + position] = to_bf16(key[d]);
                ((uint16_t *)values)[(size_t)position * head_dim + d] = to_bf16(value[d]);
            }
        }
        if (only_keeps) continue;
        for (int32_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
            rotate(qkv + h * head_dim, cosine, sine, head_dim);
            attend(m, qkv + h * head_dim, keys, values, position + 1, scratch->scores,
                   e->attended + (size_t)c * e->heads_stride + h * head_dim);
        }
    }
}
