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

/* Scores of one query against `length` keys [head_dim][stride], softmax, and the weighted sum of the values. */
static void attend(const Model *m, const float *query, const void *keys, const void *values, int32_t length,
                   float *scores, float *to) {
    const int32_t head_dim = m->head_dim, stride = m->max_columns, padded = pad(length);
    const float scale = 1.0f / sqrtf((float)head_dim);
    float largest = -INFINITY;
    for (int32_t j = 0; j < padded; j += LANES) {
        lanes sum = spread(0.0f);
        for (int32_t d = 0; d < head_dim; d++) {
            lanes key;
            if (m->precision == FP32) {
                key = *(const lanes *)((const float *)keys + (size_t)d * stride + j);
            } else {
                typedef uint16_t narrow_lanes __attribute__((vector_size(2 * LANES), aligned(2)));
                narrow_lanes bits = *(const narrow_lanes *)((const uint16_t *)keys + (size_t)d * stride + j);
                key = (lanes)(__builtin_convertvector(bits, integers) << 16);
            }
            sum += query[d] * key;
        }
        *(lanes *)(scores + j) = sum * scale;
    }
    for (int32_t j = 0; j < length; j++) largest = scores[j] > largest ? scores[j] : largest;
    for (int32_t j = length; j < padded; j++) scores[j] = -INFINITY;
    lanes totals = spread(0.0f);
    for (int32_t j = 0; j < padded; j += LANES) {
        lanes weight = exponential(*(lanes *)(scores + j) - largest);
        *(lanes *)(scores + j) = weight;
        totals += weight;
    }
    float total = 0.0f;
    for (int l = 0; l < LANES; l++) total += totals[l];
    const float inverse = 1.0f / total;
    for (int32_t d = 0; d < head_dim; d++) to[d] = 0.0f;
    for (int32_t j = 0; j < length; j++) {
        const float weight = scores[j] * inverse;
        if (m->precision == FP32) {
            const float *value = (const float *)values + (size_t)j * head_dim;
            for (int32_t d = 0; d < head_dim; d++) to[d] += weight * value[d];
        } else {
            const uint16_t *value = (const uint16_t *)values + (size_t)j * head_dim;
            for (int32_t d = 0; d < head_dim; d++) to[d] += weight * from_bf16(value[d]);
        }
    }
}

/* Keep the keys and values of one run of columns of one row for one key-value head, then attend with its queries. */
static void attend_unit(Engine *e, Layer *layer, int32_t run, int32_t kv_head, Scratch *scratch) {
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
        for (int32_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
            rotate(qkv + h * head_dim, cosine, sine, head_dim);
            attend(m, qkv + h * head_dim, keys, values, position + 1, scratch->scores,
                   e->attended + (size_t)c * e->heads_stride + h * head_dim);
        }
    }
}
