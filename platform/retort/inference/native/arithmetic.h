/* Vectors of LANES numbers, and functions of them that have the same bits wherever they are used. */
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16

/* Where sizes are known only once it is part of its caller. */
#define INLINE static inline __attribute__((always_inline)) void

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4)));

static inline lanes spread(float x) { return x - (lanes){0}; }

static inline integers larger(integers a, integers b) {
#if defined(__AVX512F__)
    return (integers)_mm512_max_epi32((__m512i)a, (__m512i)b);
#else
    const integers above = a > b;
    return (above & a) | (~above & b);
#endif
}

/* e^x to about two units in the last place, with the same bits on every path. */
static inline lanes exponential(lanes x) {
    const float log2e = 1.44269504f, high = 0.693359375f, low = -2.12194440e-4f;
    lanes limit_low = spread(-87.0f), limit_high = spread(88.0f);
    integers below = x < limit_low, above = x > limit_high;
    x = (lanes)((below & (integers)limit_low) | (~below & (integers)x));
    x = (lanes)((above & (integers)limit_high) | (~above & (integers)x));
    lanes scaled = x * log2e;
    integers negative = scaled < spread(0.0f);
    lanes half = (lanes)((negative & (integers)spread(-0.5f)) | (~negative & (integers)spread(0.5f)));
    integers n = __builtin_convertvector(scaled + half, integers);
    lanes whole = __builtin_convertvector(n, lanes);
    lanes r = x - whole * high - whole * low;
    lanes p = spread(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    lanes power = (lanes)((n + 127) << 23);
    /* What lies below the range is zero, so that masked scores weigh nothing. */
    return (lanes)(~below & (integers)(p * power));
}

/* Natural logarithm of positive normal numbers (Cephes' polynomial), with the same bits on every path. */
static inline lanes logarithm(lanes x) {
    integers bits = (integers)x;
    integers exponent = (bits >> 23) - 126;
    lanes m = (lanes)((bits & 0x7fffff) | 0x3f000000);
    integers small = m < spread(0.70710678f);
    exponent += small; /* true is -1 */
    m = (lanes)((small & (integers)(m + m)) | (~small & (integers)m)) - 1.0f;
    lanes square = m * m, e = __builtin_convertvector(exponent, lanes);
    lanes p = spread(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    p = p * m * square - 2.12194440e-4f * e - 0.5f * square;
    return m + p + 0.693359375f * e;
}

static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
