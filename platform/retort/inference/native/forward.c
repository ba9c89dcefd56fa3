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

#include <sched.h>
#include <stdlib.h>

#include "attention.h"
#include "products.h"
#include "sampling.h"

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
    const int32_t threads = m->num_threads, batch = e->call.batch, wanted = e->call.num_outputs;
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
        /* Of a prompt nobody wants logits: what the last layer adds to them is left out. */
        const int only_keeps = wanted == 0 && l == m->num_layers - 1;
        for (int32_t unit = thread; unit < e->num_runs * m->num_kv_heads; unit += threads)
            attend_unit(e, layer, unit / m->num_kv_heads, unit % m->num_kv_heads, only_keeps, scratch);
        if (only_keeps) return;
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
    for (int32_t i = 0; i < wanted; i++)
        rms_norm(m, e->x + (size_t)e->call.outputs[i] * e->dim_stride, e->dim_stride, 1, m->norm,
                 scratch->normed + (size_t)i * e->dim_stride);
    const int32_t columns = e->step ? guide(e, e->step, scratch->normed) : wanted;
    narrow(m->precision, scratch->normed, e->dim_stride, columns, scratch);
    Product heads = {&m->heads, m->precision, STORE, columns, scratch->normed, scratch->narrow, scratch->scales,
                     e->dim_stride, e->call.logits, m->heads.outputs};
    multiply_share(&heads, thread, threads);
    if (!e->step) return;
    meet(e);
    for (int32_t i = thread; i < columns; i += threads) draw(e, e->step, i, scratch);
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

static void *zeros(size_t bytes) {
    size_t rounded = (bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, rounded ? rounded : 64);
    if (memory) memset(memory, 0, rounded ? rounded : 64);
    return memory;
}

void retort_free(Engine *e) {
    if (!e) return;
    if (e->num_workers) {
        atomic_store(&e->stopping, 1);
        start_workers(e);
        for (int32_t t = 1; t <= e->num_workers; t++) pthread_join(e->threads[t], NULL);
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
        retort_free(e);
        return NULL;
    }
    memcpy(e->model.layers, model->layers, sizeof(Layer) * model->num_layers);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->wake, NULL);
    for (int32_t t = 1; t < model->num_threads; t++) {
        if (pthread_create(&e->threads[t], NULL, work, e)) {
            retort_free(e);
            return NULL;
        }
        e->num_workers = t;
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
