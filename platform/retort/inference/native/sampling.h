/* From logits to tokens: guidance, temperature, top-k, top-p, Gumbel noise, the delay pattern and the end of speech. */
#pragma once

#include <math.h>
#include <stdlib.h>

#include "engine.h"

/* splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014); the same numbers as retort.nn.random. */
static inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

static void add_gumbel(float *logits, int32_t size, uint64_t row, uint64_t first_lane) {
    const uint64_t golden = 0x9E3779B97F4A7C15ull;
    for (int32_t v = 0; v < size; v += LANES) {
        lanes u;
        for (int l = 0; l < LANES; l++) {
            uint64_t bits = mix(row + (first_lane + (uint64_t)(v + l) + 1) * golden) >> 40;
            float value = ((float)bits + 0.5f) * (1.0f / 16777216.0f);
            u[l] = value < 0.99999994f ? value : 0.99999994f;
        }
        *(lanes *)(logits + v) += -logarithm(-logarithm(u));
    }
}

static int descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* Whether a number is infinite or none; by its bits, which no compiler's assumption about numbers takes away. */
static inline int is_broken(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7F800000u) == 0x7F800000u;
}

/* Everything below what top-k and top-p keep becomes NEVER. Equal logits stand or fall together. */
static void cut(const Slot *slot, float *logits, int32_t size, float *sorted) {
    const int by_rank = slot->top_k > 0 && slot->top_k < size, by_mass = slot->top_p < 1.0f;
    if (!by_rank && !by_mass) return;
    memcpy(sorted, logits, sizeof(float) * size);
    qsort(sorted, size, sizeof(float), descending);
    float least = by_rank ? sorted[slot->top_k - 1] : -INFINITY;
    if (by_mass) {
        double total = 0.0, before = 0.0;
        int32_t kept = by_rank ? slot->top_k : size;
        for (int32_t i = 0; i < kept; i++) total += exp((double)sorted[i] - sorted[0]);
        for (int32_t i = 0; i < kept; i++) {
            if (before / total >= slot->top_p) break;
            least = sorted[i];
            before += exp((double)sorted[i] - sorted[0]);
        }
    }
    for (int32_t v = 0; v < size; v++)
        if (logits[v] < least) logits[v] = NEVER;
}

/* The index of the largest number, the first one of equals. */
static int32_t largest_of(const float *numbers, int32_t size) {
    lanes tops = spread(-INFINITY);
    integers where = {0};
    int32_t v = 0;
    for (; v + LANES <= size; v += LANES) {
        const lanes here = *(const lanes *)(numbers + v);
        const integers above = here > tops;
        tops = (lanes)((above & (integers)here) | (~above & (integers)tops));
        where = (above & v) | (~above & where);
    }
    float top = -INFINITY;
    int32_t first = 0; /* of numbers that are none, too */
    for (int l = 0; l < LANES; l++) {
        const int32_t at = where[l] + l;
        if (tops[l] > top || (tops[l] == top && at < first)) {
            top = tops[l];
            first = at;
        }
    }
    for (; v < size; v++) {
        if (numbers[v] > top) {
            top = numbers[v];
            first = v;
        }
    }
    return first;
}

/* Combine the normed columns of each slot's conditions into one; returns the number of slots. The heads are linear, so
 * guidance before them is guidance of the logits, at the price of one column. */
static int32_t guide(const Engine *e, const Step *step, float *normed) {
    const float *from = normed;
    for (int32_t i = 0; i < step->num_slots; i++) {
        const Slot *slot = &step->slots[step->chosen[i]];
        float *to = normed + (size_t)i * e->dim_stride; /* never behind `from` */
        for (int32_t d = 0; d < e->dim_stride; d += LANES) {
            lanes sum = *(const lanes *)(from + d);
            if (slot->num_conditions > 1) sum *= slot->coefficients[0];
            for (int32_t c = 1; c < slot->num_conditions; c++)
                sum += slot->coefficients[c] * *(const lanes *)(from + (size_t)c * e->dim_stride + d);
            *(lanes *)(to + d) = sum;
        }
        from += (size_t)slot->num_conditions * e->dim_stride;
    }
    return step->num_slots;
}

/* Cut and draw one slot's tokens from its guided logits; apply the delays and the end of speech; move on. */
static void draw(Engine *e, const Step *step, int32_t index, Scratch *scratch) {
    const Model *m = &e->model;
    Slot *slot = &step->slots[step->chosen[index]];
    const int32_t size = m->codebook_vocabulary - 1, K = m->num_codebooks, eos = size - 1, fill = size;
    const uint64_t golden = 0x9E3779B97F4A7C15ull;
    const uint64_t row = mix(mix(slot->seed * golden) + (uint64_t)slot->step);
    int32_t drawn[MAX_CODEBOOKS], broken = 0;
    for (int32_t k = 0; k < K; k++) {
        float *guided = scratch->guided;
        memcpy(guided, e->step_logits + (size_t)index * m->heads.outputs + (size_t)k * size, sizeof(float) * size);
        for (int32_t v = 0; v < size; v++) broken |= is_broken(guided[v]);
        if (k > 0 || !slot->may_end) guided[eos] = NEVER;
        if (step->guided) memcpy(step->guided + ((size_t)index * K + k) * size, guided, sizeof(float) * size);
        if (slot->temperature > 0.0f) {
            const float inverse = 1.0f / slot->temperature;
            for (int32_t v = 0; v < size; v++) guided[v] *= inverse;
            cut(slot, guided, size, scratch->sorted);
            add_gumbel(guided, size, row, (uint64_t)k * size);
        }
        drawn[k] = largest_of(guided, size);
    }
    /* At the limit itself the end of speech still counts: the utterance has exactly that many frames. */
    const int ends = drawn[0] == eos && !slot->has_ended && slot->step <= slot->end;
    if (ends) {
        slot->end = slot->step;
        slot->has_ended = 1;
    }
    for (int32_t k = 0; k < K; k++) {
        const int32_t frame = slot->step - step->delays[k];
        slot->tokens[k] = frame >= 0 && frame < slot->end ? drawn[k] : fill;
    }
    if (ends) slot->tokens[0] = eos;
    if (broken) slot->tokens[0] = BROKEN;
    slot->step++;
}
