/* One forward pass of the codec language model on a CPU: embeddings in, logits out, keys and values kept.
 *
 * Why not torch: at these sizes a step is a hundred small operations whose dispatch costs more than their arithmetic,
 * and torch picks another kernel, so other roundings, for another batch. Here every output is one running sum over its
 * inputs, in order, whatever else is in the batch: a row's bits depend on that row alone.
 *
 * Weights are packed in panels of LANES outputs, [panel][input][LANES] in fp32 and [panel][input / 2][LANES][2] in bf16
 * and int8, so that a panel's products need no horizontal sums. Activations are fp32; bf16 products round them to
 * bf16, int8 products to 16-bit integers with one scale a row. int8 weights have a scale for each output and group of
 * GROUP inputs; the sum of a group is an exact integer.
 */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16
#define GROUP 32
#define MAX_THREADS 64
#define MAX_CODEBOOKS 64
#define MAX_CONDITIONS 4
#define QUANTISED_MAX 32767.0f
#define NEVER -1e30f

enum { FP32 = 0, BF16 = 1, INT8 = 2 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int16_t pairs __attribute__((vector_size(4 * LANES), aligned(2)));

typedef struct {
    const void *panels;
    const float *scales; /* int8: [panel][group][LANES] */
    const float *bias;   /* NULL or one per output */
    int32_t inputs;      /* padded to GROUP */
    int32_t outputs;     /* padded to GROUP, two panels */
} Matrix;

typedef struct {
    Matrix qkv, out, gate_up, down;
    const float *attention_norm, *feed_forward_norm;
    void *keys;   /* [row][kv head][head_dim][column] */
    void *values; /* [row][kv head][column][head_dim] */
} Layer;

typedef struct {
    int32_t dim, num_layers, num_heads, num_kv_heads, head_dim, ffn_dim, num_codebooks, codebook_vocabulary;
    int32_t precision, max_rows, max_columns, max_batch, num_threads;
    float eps;
    const float *audio_embedding; /* [K * codebook_vocabulary][dim] */
    const float *cosine, *sine;   /* [max_columns][head_dim / 2] */
    const float *norm;
    Matrix heads;
    Layer *layers;
} Model;

typedef struct {
    int32_t batch;             /* columns in this call */
    const float *embedded;     /* [batch][dim] or NULL */
    const int32_t *tokens;     /* [batch][K], read where embedded is NULL */
    const int32_t *rows;       /* cache row of each column */
    const int32_t *positions;  /* column of the cache that it fills */
    int32_t num_outputs;       /* columns whose logits are wanted */
    const int32_t *outputs;    /* their indices */
    float *logits;             /* [num_outputs][heads.outputs] */
} Call;

/* One utterance that is being decoded. Python owns it and fills it; a step advances it. */
typedef struct {
    int32_t num_conditions;               /* cache rows of this slot: one per condition of its guidance */
    int32_t rows[MAX_CONDITIONS];
    int32_t positions[MAX_CONDITIONS];    /* next column of each row */
    float coefficients[MAX_CONDITIONS];
    float temperature, top_p;             /* temperature 0 is greedy, top_p 1 keeps everything */
    int32_t top_k;                        /* 0 keeps everything */
    int32_t may_end;                      /* whether the end of speech is legal */
    int32_t step;                         /* decoding steps done; the counter of the noise */
    int32_t end;                          /* frames: the step of the end of speech, or the limit until it comes */
    int32_t has_ended;
    uint64_t seed;
    int32_t tokens[MAX_CODEBOOKS];        /* last step's tokens, fed back at the next */
} Slot;

typedef struct {
    int32_t num_slots;
    Slot *slots;                 /* all of them */
    const int32_t *chosen;       /* [num_slots] which take this step */
    const int32_t *delays;       /* [K] */
    float *guided;               /* [num_slots][K][output_size] or NULL: guided logits, illegal tokens at NEVER */
} Step;

typedef struct {
    float *normed;  /* [max_batch][widest] */
    void *narrow;   /* [max_batch][widest] of uint16 or int16 */
    float *scales;  /* [max_batch] */
    float *scores;  /* [max_columns] */
    float *guided;  /* [output_size], padded */
    float *sorted;  /* [output_size], padded */
} Scratch;

typedef struct {
    Model model;
    int32_t dim_stride, qkv_stride, heads_stride, ffn_stride, widest;
    float *x, *qkv, *attended, *activated;
    int32_t *run_starts, num_runs;
    Scratch scratch[MAX_THREADS];
    Call call;
    const Step *step; /* NULL, or the step whose logits the call gives */
    float *step_logits;
    int32_t *step_rows, *step_positions, *step_tokens, *step_outputs;
    pthread_t threads[MAX_THREADS];
    int32_t indices[MAX_THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_int generation, sleepers, arrived, phase, stopping;
    atomic_int next_index;
} Engine;

static inline int32_t pad(int32_t n) { return (n + GROUP - 1) / GROUP * GROUP; }

/* ---- arithmetic ------------------------------------------------------------------------------------------------ */

static inline lanes spread(float x) { return x - (lanes){0}; }

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

/* What a product of `columns` rows and `panels` panels leaves in `sums`; the order of each sum is that of its inputs. */
#define TILE static inline __attribute__((always_inline)) void

TILE tile_fp32(const int columns, const int panels, const float *x, int32_t x_stride, const float *w, int32_t inputs,
               lanes sums[columns][panels]) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) sums[c][p] = spread(0.0f);
    for (int32_t k = 0; k < inputs; k++) {
        lanes weights[panels];
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++)
            weights[p] = *(const lanes *)(w + (size_t)p * inputs * LANES + (size_t)k * LANES);
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++) {
#if defined(__AVX512F__)
                sums[c][p] = (lanes)_mm512_fmadd_ps(_mm512_set1_ps(x[(size_t)c * x_stride + k]), (__m512)weights[p],
                                                    (__m512)sums[c][p]);
#else
                sums[c][p] += x[(size_t)c * x_stride + k] * weights[p];
#endif
            }
    }
}

TILE tile_bf16(const int columns, const int panels, const uint16_t *x, int32_t x_stride, const uint16_t *w,
               int32_t inputs, lanes sums[columns][panels]) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) sums[c][p] = spread(0.0f);
    for (int32_t k = 0; k < inputs; k += 2) {
#if defined(__AVX512BF16__)
        __m512bh weights[panels];
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++)
            weights[p] = (__m512bh)_mm512_loadu_si512(w + (size_t)p * inputs * LANES + (size_t)k * LANES);
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) {
            int32_t two;
            memcpy(&two, x + (size_t)c * x_stride + k, 4);
            __m512bh spread_two = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++)
                sums[c][p] = (lanes)_mm512_dpbf16_ps((__m512)sums[c][p], weights[p], spread_two);
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

TILE tile_int8(const int columns, const int panels, const int16_t *x, int32_t x_stride, const int8_t *w,
               const float *scales, int32_t inputs, lanes sums[columns][panels]) {
    const int32_t groups = inputs / GROUP;
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) sums[c][p] = spread(0.0f);
    for (int32_t g = 0; g < groups; g++) {
        integers totals[columns][panels];
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++) totals[c][p] = (integers){0};
        for (int32_t k = g * GROUP; k < (g + 1) * GROUP; k += 2) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
            __m512i weights[panels];
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++)
                weights[p] = _mm512_cvtepi8_epi16(
                    _mm256_loadu_si256((const __m256i *)(w + (size_t)p * inputs * LANES + (size_t)k * LANES)));
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++) {
                int32_t two;
                memcpy(&two, x + (size_t)c * x_stride + k, 4);
                __m512i spread_two = _mm512_set1_epi32(two);
#pragma GCC unroll 8
                for (int p = 0; p < panels; p++)
                    totals[c][p] = (integers)_mm512_dpwssd_epi32((__m512i)totals[c][p], weights[p], spread_two);
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

/* ---- products -------------------------------------------------------------------------------------------------- */

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

TILE finish(const Product *job, const int columns, const int panels, int32_t column, int32_t panel,
            lanes sums[columns][panels]) {
    const Matrix *m = job->matrix;
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) {
        float scale = job->precision == INT8 ? job->scales[column + c] : 1.0f;
        lanes out[panels];
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

#define PRODUCT(COLUMNS, PANELS)                                                                                      \
    do {                                                                                                              \
        lanes sums[COLUMNS][PANELS];                                                                                  \
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
    } while (0)

static __attribute__((noinline)) void product_1x8(const Product *job, int32_t column, int32_t panel) { PRODUCT(1, 8); }
static __attribute__((noinline)) void product_1x2(const Product *job, int32_t column, int32_t panel) { PRODUCT(1, 2); }
static __attribute__((noinline)) void product_1x1(const Product *job, int32_t column, int32_t panel) { PRODUCT(1, 1); }
static __attribute__((noinline)) void product_2x4(const Product *job, int32_t column, int32_t panel) { PRODUCT(2, 4); }
static __attribute__((noinline)) void product_2x2(const Product *job, int32_t column, int32_t panel) { PRODUCT(2, 2); }
static __attribute__((noinline)) void product_4x4(const Product *job, int32_t column, int32_t panel) { PRODUCT(4, 4); }
static __attribute__((noinline)) void product_4x2(const Product *job, int32_t column, int32_t panel) { PRODUCT(4, 2); }
static __attribute__((noinline)) void product_8x2(const Product *job, int32_t column, int32_t panel) { PRODUCT(8, 2); }

/* Panels [begin, end) of a product for all columns; a block of panels stays in cache while the columns pass. */
static void multiply(const Product *job, int32_t begin, int32_t end) {
    const int32_t batch = job->batch;
    const int32_t block = batch == 1 ? 8 : batch <= 4 ? 4 : 2;
    for (int32_t panel = begin; panel < end;) {
        int32_t width = end - panel < block ? (end - panel >= 2 ? (end - panel >= 4 && block > 4 ? 4 : 2) : 1) : block;
        int32_t column = 0;
        while (column < batch) {
            int32_t left = batch - column;
            if (width == 1) { product_1x1(job, column, panel); column += 1; continue; }
            if (left >= 8) {
                for (int32_t p = 0; p < width; p += 2) product_8x2(job, column, panel + p);
                column += 8;
            } else if (left >= 4) {
                if (width == 4) product_4x4(job, column, panel);
                else for (int32_t p = 0; p < width; p += 2) product_4x2(job, column, panel + p);
                column += 4;
            } else if (left >= 2) {
                if (width == 4) product_2x4(job, column, panel);
                else for (int32_t p = 0; p < width; p += 2) product_2x2(job, column, panel + p);
                column += 2;
            } else {
                if (width == 8) product_1x8(job, column, panel);
                else for (int32_t p = 0; p < width; p += 2) product_1x2(job, column, panel + p);
                column += 1;
            }
        }
        panel += width;
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
            float largest = 0.0f;
            for (int32_t k = 0; k < stride; k++) {
                float size = from[k] < 0 ? -from[k] : from[k];
                largest = size > largest ? size : largest;
            }
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

/* ---- attention ------------------------------------------------------------------------------------------------- */

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

/* ---- sampling -------------------------------------------------------------------------------------------------- */

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

/* Guide, cut and draw one slot's tokens; apply the delays and the end of speech; move on. */
static void draw(Engine *e, const Step *step, int32_t index, int32_t first_output, Scratch *scratch) {
    const Model *m = &e->model;
    Slot *slot = &step->slots[step->chosen[index]];
    const int32_t size = m->codebook_vocabulary - 1, K = m->num_codebooks, eos = size - 1, fill = size;
    const uint64_t golden = 0x9E3779B97F4A7C15ull;
    const uint64_t row = mix(mix(slot->seed * golden) + (uint64_t)slot->step);
    int32_t drawn[MAX_CODEBOOKS];
    for (int32_t k = 0; k < K; k++) {
        float *guided = scratch->guided;
        const float *logits = e->step_logits + (size_t)first_output * m->heads.outputs + (size_t)k * size;
        if (slot->num_conditions == 1) {
            memcpy(guided, logits, sizeof(float) * size);
        } else {
            for (int32_t v = 0; v < size; v++) guided[v] = slot->coefficients[0] * logits[v];
            for (int32_t c = 1; c < slot->num_conditions; c++) {
                const float *other = logits + (size_t)c * m->heads.outputs;
                for (int32_t v = 0; v < size; v++) guided[v] += slot->coefficients[c] * other[v];
            }
        }
        if (k > 0 || !slot->may_end) guided[eos] = NEVER;
        if (step->guided) memcpy(step->guided + ((size_t)index * K + k) * size, guided, sizeof(float) * size);
        if (slot->temperature > 0.0f) {
            const float inverse = 1.0f / slot->temperature;
            for (int32_t v = 0; v < size; v++) guided[v] *= inverse;
            cut(slot, guided, size, scratch->sorted);
            add_gumbel(guided, size, row, (uint64_t)k * size);
        }
        int32_t best = 0;
        for (int32_t v = 1; v < size; v++)
            if (guided[v] > guided[best]) best = v;
        drawn[k] = best;
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
    slot->step++;
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* All threads meet here. They spin for a moment, then yield: on a busy machine the others need the core. */
static void meet(Engine *e) {
    const int32_t threads = e->model.num_threads;
    if (threads == 1) return;
    const int phase = atomic_load_explicit(&e->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&e->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&e->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&e->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&e->phase, memory_order_acquire) == phase; spins++) {
        if (spins < 4000) relax();
        else sched_yield();
    }
}

static void pass(Engine *e, int32_t thread) {
    const Model *m = &e->model;
    const int32_t threads = m->num_threads, batch = e->call.batch;
    Scratch *scratch = &e->scratch[thread];
    for (int32_t c = thread; c < batch; c += threads) {
        float *x = e->x + (size_t)c * e->dim_stride;
        if (e->call.embedded) {
            memcpy(x, e->call.embedded + (size_t)c * m->dim, sizeof(float) * m->dim);
            continue;
        }
        for (int32_t d = 0; d < m->dim; d++) x[d] = 0.0f;
        for (int32_t k = 0; k < m->num_codebooks; k++) {
            const int64_t token = e->call.tokens[(size_t)c * m->num_codebooks + k];
            const float *row = m->audio_embedding + (token + (int64_t)k * m->codebook_vocabulary) * m->dim;
            for (int32_t d = 0; d < m->dim; d++) x[d] += row[d];
        }
    }
    meet(e);
    for (int32_t l = 0; l < m->num_layers; l++) {
        Layer *layer = &m->layers[l];
        /* Norms and roundings are done by every thread for itself: cheaper than meeting once more. */
        rms_norm(m, e->x, e->dim_stride, batch, layer->attention_norm, scratch->normed);
        narrow(m->precision, scratch->normed, e->dim_stride, batch, scratch);
        Product qkv = {&layer->qkv, m->precision, STORE, batch, scratch->normed, scratch->narrow, scratch->scales,
                       e->dim_stride, e->qkv, e->qkv_stride};
        multiply_share(&qkv, thread, threads);
        meet(e);
        for (int32_t unit = thread; unit < e->num_runs * m->num_kv_heads; unit += threads)
            attend_unit(e, layer, unit / m->num_kv_heads, unit % m->num_kv_heads, scratch);
        meet(e);
        narrow(m->precision, e->attended, e->heads_stride, batch, scratch);
        Product out = {&layer->out, m->precision, ADD, batch, e->attended, scratch->narrow, scratch->scales,
                       e->heads_stride, e->x, e->dim_stride};
        multiply_share(&out, thread, threads);
        meet(e);
        rms_norm(m, e->x, e->dim_stride, batch, layer->feed_forward_norm, scratch->normed);
        narrow(m->precision, scratch->normed, e->dim_stride, batch, scratch);
        Product gate_up = {&layer->gate_up, m->precision, ACTIVATE, batch, scratch->normed, scratch->narrow,
                           scratch->scales, e->dim_stride, e->activated, e->ffn_stride};
        multiply_share(&gate_up, thread, threads);
        meet(e);
        narrow(m->precision, e->activated, e->ffn_stride, batch, scratch);
        Product down = {&layer->down, m->precision, ADD, batch, e->activated, scratch->narrow, scratch->scales,
                        e->ffn_stride, e->x, e->dim_stride};
        multiply_share(&down, thread, threads);
        meet(e);
    }
    const int32_t wanted = e->call.num_outputs;
    if (wanted == 0) return;
    for (int32_t i = 0; i < wanted; i++)
        rms_norm(m, e->x + (size_t)e->call.outputs[i] * e->dim_stride, e->dim_stride, 1, m->norm,
                 scratch->normed + (size_t)i * e->dim_stride);
    narrow(m->precision, scratch->normed, e->dim_stride, wanted, scratch);
    Product heads = {&m->heads, m->precision, STORE, wanted, scratch->normed, scratch->narrow, scratch->scales,
                     e->dim_stride, e->call.logits, m->heads.outputs};
    multiply_share(&heads, thread, threads);
    if (!e->step) return;
    meet(e);
    int32_t first_output = 0;
    for (int32_t i = 0; i < e->step->num_slots; i++) {
        const int32_t conditions = e->step->slots[e->step->chosen[i]].num_conditions;
        if (i % threads == thread) draw(e, e->step, i, first_output, scratch);
        first_output += conditions;
    }
}

static void *work(void *argument) {
    Engine *e = argument;
    const int32_t thread = 1 + atomic_fetch_add(&e->next_index, 1);
    int seen = 0;
    for (;;) {
        for (int spins = 0; atomic_load_explicit(&e->generation, memory_order_acquire) == seen && spins < 20000; spins++)
            relax();
        if (atomic_load_explicit(&e->generation, memory_order_acquire) == seen) {
            pthread_mutex_lock(&e->mutex);
            atomic_fetch_add(&e->sleepers, 1);
            while (atomic_load(&e->generation) == seen) pthread_cond_wait(&e->wake, &e->mutex);
            atomic_fetch_sub(&e->sleepers, 1);
            pthread_mutex_unlock(&e->mutex);
        }
        seen++;
        if (atomic_load(&e->stopping)) return NULL;
        pass(e, thread);
        meet(e);
    }
}

static void start_workers(Engine *e) {
    atomic_fetch_add(&e->generation, 1);
    if (atomic_load(&e->sleepers)) {
        pthread_mutex_lock(&e->mutex);
        pthread_cond_broadcast(&e->wake);
        pthread_mutex_unlock(&e->mutex);
    }
}

/* ---- what Python calls ----------------------------------------------------------------------------------------- */

static void *zeros(size_t bytes) {
    size_t rounded = (bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, rounded ? rounded : 64);
    if (memory) memset(memory, 0, rounded ? rounded : 64);
    return memory;
}

void retort_free(Engine *e) {
    if (!e) return;
    if (e->model.num_threads > 1) {
        atomic_store(&e->stopping, 1);
        start_workers(e);
        for (int32_t t = 1; t < e->model.num_threads; t++)
            if (e->indices[t]) pthread_join(e->threads[t], NULL);
    }
    for (int32_t t = 0; t < e->model.num_threads; t++) {
        free(e->scratch[t].normed);
        free(e->scratch[t].narrow);
        free(e->scratch[t].scales);
        free(e->scratch[t].scores);
        free(e->scratch[t].guided);
        free(e->scratch[t].sorted);
    }
    free(e->x);
    free(e->qkv);
    free(e->attended);
    free(e->activated);
    free(e->run_starts);
    free(e->step_logits);
    free(e->step_rows);
    free(e->step_positions);
    free(e->step_tokens);
    free(e->step_outputs);
    free(e->model.layers);
    free(e);
}

/* NULL when memory or threads cannot be had. The weights and caches stay the caller's. */
Engine *retort_new(const Model *model) {
    if (model->num_threads < 1 || model->num_threads > MAX_THREADS || model->num_codebooks > MAX_CODEBOOKS) return NULL;
    Engine *e = zeros(sizeof(Engine));
    if (!e) return NULL;
    e->model = *model;
    e->model.layers = zeros(sizeof(Layer) * model->num_layers);
    e->dim_stride = pad(model->dim);
    e->qkv_stride = pad((model->num_heads + 2 * model->num_kv_heads) * model->head_dim);
    e->heads_stride = pad(model->num_heads * model->head_dim);
    e->ffn_stride = pad(model->ffn_dim);
    e->widest = e->dim_stride;
    if (e->heads_stride > e->widest) e->widest = e->heads_stride;
    if (e->ffn_stride > e->widest) e->widest = e->ffn_stride;
    const size_t batch = model->max_batch;
    e->x = zeros(4 * batch * e->dim_stride);
    e->qkv = zeros(4 * batch * e->qkv_stride);
    e->attended = zeros(4 * batch * e->heads_stride);
    e->activated = zeros(4 * batch * e->ffn_stride);
    e->run_starts = zeros(4 * (batch + 1));
    e->step_logits = zeros(4 * batch * model->heads.outputs);
    e->step_rows = zeros(4 * batch);
    e->step_positions = zeros(4 * batch);
    e->step_tokens = zeros(4 * batch * model->num_codebooks);
    e->step_outputs = zeros(4 * batch);
    int complete = e->step_logits && e->step_rows && e->step_positions && e->step_tokens && e->step_outputs;
    complete = complete && e->model.layers && e->x && e->qkv && e->attended && e->activated && e->run_starts;
    for (int32_t t = 0; t < model->num_threads; t++) {
        Scratch *s = &e->scratch[t];
        s->normed = zeros(4 * batch * e->dim_stride);
        s->narrow = zeros(2 * batch * e->widest);
        s->scales = zeros(4 * batch);
        s->scores = zeros(4 * (size_t)pad(model->max_columns));
        s->guided = zeros(4 * (size_t)pad(model->codebook_vocabulary));
        s->sorted = zeros(4 * (size_t)pad(model->codebook_vocabulary));
        complete = complete && s->normed && s->narrow && s->scales && s->scores && s->guided && s->sorted;
    }
    if (!complete) {
        e->model.num_threads = model->num_threads;
        retort_free(e);
        return NULL;
    }
    memcpy(e->model.layers, model->layers, sizeof(Layer) * model->num_layers);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->wake, NULL);
    for (int32_t t = 1; t < model->num_threads; t++)
        e->indices[t] = pthread_create(&e->threads[t], NULL, work, e) == 0;
    for (int32_t t = 1; t < model->num_threads; t++)
        if (!e->indices[t]) {
            e->model.num_threads = 1; /* alone is slower, and right */
            break;
        }
    return e;
}

/* Whether the call fits the engine; finds the runs of columns of one row. */
static int accept(Engine *e, const Call *call) {
    const Model *m = &e->model;
    if (call->batch < 1 || call->batch > m->max_batch || call->num_outputs > m->max_batch) return 0;
    e->num_runs = 0;
    for (int32_t c = 0; c < call->batch; c++) {
        if (call->rows[c] < 0 || call->rows[c] >= m->max_rows) return 0;
        if (call->positions[c] < 0 || call->positions[c] >= m->max_columns) return 0;
        if (c == 0 || call->rows[c] != call->rows[c - 1]) e->run_starts[e->num_runs++] = c;
        for (int32_t k = 0; !call->embedded && k < m->num_codebooks; k++) {
            const int32_t token = call->tokens[(size_t)c * m->num_codebooks + k];
            if (token < 0 || token >= m->codebook_vocabulary) return 0;
        }
    }
    e->run_starts[e->num_runs] = call->batch;
    e->call = *call;
    return 1;
}

static void run(Engine *e, const Step *step) {
    e->step = step;
    if (e->model.num_threads > 1) start_workers(e);
    pass(e, 0);
    meet(e);
}

/* Columns of one row must be neighbours, in order. Returns 0, or 1 for a call that does not fit the engine. */
int32_t retort_forward(Engine *e, const Call *call) {
    if (!accept(e, call)) return 1;
    run(e, NULL);
    return 0;
}

/* One step of decoding: feed each chosen slot's last tokens, draw its next ones. Returns 0, or 1 as above. */
int32_t retort_step(Engine *e, const Step *step) {
    const Model *m = &e->model;
    int32_t batch = 0;
    for (int32_t i = 0; i < step->num_slots; i++) {
        Slot *slot = &step->slots[step->chosen[i]];
        if (slot->num_conditions < 1 || slot->num_conditions > MAX_CONDITIONS) return 1;
        if (batch + slot->num_conditions > m->max_batch) return 1;
        for (int32_t c = 0; c < slot->num_conditions; c++, batch++) {
            e->step_rows[batch] = slot->rows[c];
            e->step_positions[batch] = slot->positions[c];
            e->step_outputs[batch] = batch;
            memcpy(e->step_tokens + (size_t)batch * m->num_codebooks, slot->tokens, sizeof(int32_t) * m->num_codebooks);
        }
    }
    Call call = {batch, NULL, e->step_tokens, e->step_rows, e->step_positions, batch, e->step_outputs, e->step_logits};
    if (!accept(e, &call)) return 1;
    run(e, step);
    for (int32_t i = 0; i < step->num_slots; i++)
        for (int32_t c = 0; c < step->slots[step->chosen[i]].num_conditions; c++)
            step->slots[step->chosen[i]].positions[c]++;
    return 0;
}
