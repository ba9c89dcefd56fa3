/* What the parts of the forward pass share. Matrix, Layer, Model, Call, Slot and Step have twins in Python. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "arithmetic.h"

#define GROUP 32
#define MAX_THREADS 64
#define MAX_CODEBOOKS 64
#define MAX_CONDITIONS 4
#define QUANTISED_MAX 32767.0f
#define NEVER -1e30f
#define BROKEN -1 /* the token of codebook 0 where logits are no numbers; such a slot must not be stepped again */

enum { FP32 = 0, BF16 = 1, INT8 = 2 };

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
    const Step *step; /* NULL, or the step whose guided logits, one column a slot, the call gives */
    float *step_logits;
    int32_t *step_rows, *step_positions, *step_tokens, *step_outputs;
    pthread_t threads[MAX_THREADS];
    int32_t num_workers; /* threads[1 .. num_workers] run */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_int generation, sleepers, arrived, phase, stopping;
    atomic_int next_index;
} Engine;

static inline int32_t pad(int32_t n) { return (n + GROUP - 1) / GROUP * GROUP; }
