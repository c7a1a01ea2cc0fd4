/* Selective scan and causal convolution of Mamba (Gu & Dao 2023, arXiv:2312.00752) on CPU, float32, channels last.
 *
 * The same kernels are compiled for each instruction set and chosen at run time. Threads are made and joined within a
 * call: no pool that a fork could break. Plain C, no Python headers; native.py is the only caller. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define ON_X86 1
#include <immintrin.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define BLOCK 8        /* steps between kept states: a block's work space must fit the first-level cache (measured) */
#define RECENT 32      /* blocks summed on their own first: one long sum would lose digits in a long sequence */
#define CONV_BLOCK 32  /* steps of one channel group before the next: rows stay in the cache meanwhile */
#define MAX_STATES 256 /* N */
#define MAX_TAPS 16    /* K */
#define MAX_THREADS 64
#define LOG2E 1.4426950408889634f
#define LOGE2 0.6931471805599453f

/* Strides are in floats: *_step from one step to the next, *_batch from one sample to the next. */
typedef struct {
    int64_t batch, length, channels, threads;
    int64_t groups_per_tile, width; /* channel groups of one thread's tile, channels of a group: set here */
} call_shape;

typedef struct {
    call_shape shape;
    int64_t states, softplus;
    const float *u, *delta, *A, *B, *C, *D, *z, *dy; /* D and z may be absent; dy only in the backward pass */
    int64_t u_batch, u_step, delta_batch, delta_step, A_batch, B_batch, B_step, C_batch, C_step, D_batch;
    int64_t z_batch, z_step, dy_batch, dy_step;
    float *y, *starts;       /* (batch, length, channels); scan_starts_size floats, or absent */
    float *du, *ddelta, *dz; /* (batch, length, channels) */
    float *dA, *dD;          /* (batch, channels, states), (batch, channels) */
    float *dB, *dC;          /* (tiles of a sample, batch, length, states), to be summed over the first axis */
} scan_call;

typedef struct {
    call_shape shape;
    int64_t taps;
    const float *x, *weight, *bias, *dy; /* weight (channels, taps) and bias (channels), of each sample or of all */
    int64_t x_batch, x_step, weight_batch, bias_batch, dy_batch, dy_step;
    float *y, *dx;          /* (batch, length, channels) */
    float *dweight, *dbias; /* (batch, channels, taps), (batch, channels) */
} conv_call;

#define LANES(s, c0) ((s)->shape.channels - (c0) < WIDTH ? (s)->shape.channels - (c0) : WIDTH)
#define GROUPS(shape) (((shape).channels + (shape).width - 1) / (shape).width)
#define BLOCKS(shape) (((shape).length + BLOCK - 1) / BLOCK)
#define STEPS(s, t0) ((s)->shape.length - (t0) < BLOCK ? (s)->shape.length - (t0) : BLOCK)
#define START(s, b, block, group)                                                                      \
    (((((b) * BLOCKS((s)->shape)) + (block)) * GROUPS((s)->shape) + (group)) * (s)->states * (s)->shape.width)
#define ROWS(N) ((BLOCK * (N) + 15) / 16 * 16) /* (BLOCK, N) made a whole number of vectors of any width */

typedef void (*tile_function)(const void *call, int64_t b, int64_t first, int64_t last, void *memory);

#if ON_X86
#define ISA_AVX512
#define WIDTH 16
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(x) x##_avx512
#include "vector_math.h"
#include "scan_kernel.h"
#include "conv_kernel.h"
#include "end_of_isa.h"
#undef ISA_AVX512

#define ISA_AVX2
#define WIDTH 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_avx2
#include "vector_math.h"
#include "scan_kernel.h"
#include "conv_kernel.h"
#include "end_of_isa.h"
#undef ISA_AVX2
#endif

#define WIDTH 4
#define TARGET
#define NAME(x) x##_baseline
#include "vector_math.h"
#include "scan_kernel.h"
#include "conv_kernel.h"
#include "end_of_isa.h"

enum { SCAN_FORWARD, SCAN_BACKWARD, CONV_FORWARD, CONV_BACKWARD };

typedef struct {
    const char *name;
    int width;
    tile_function run[4];
    void (*exponentials)(const float *x, float *y, int64_t count);
} instruction_set;

#define SET(isa, width) \
    {#isa, width, {scan_forward_tile_##isa, scan_backward_tile_##isa, conv_forward_tile_##isa, conv_backward_tile_##isa}, \
     exponentials_##isa}

static const instruction_set SETS[] = {
    SET(baseline, 4),
#if ON_X86
    SET(avx2, 8),
    SET(avx512, 16),
#endif
};

static int chosen = -1;

static int best(void) {
#if ON_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* Uses instruction set `level` (0 baseline, 1 avx2, 2 avx512), or the best when -1; returns its name, or NULL when this
 * machine lacks it. For tests: not to be called while scans run. */
EXPORT const char *scan_choose(int level) {
    int top = best();
    if (level > top) return NULL;
    chosen = level < 0 ? top : level;
    return SETS[chosen].name;
}

static const instruction_set *isa(void) { return &SETS[chosen < 0 ? best() : chosen]; }

/* y = e^x by the arithmetic of the scan, on its own: for its test, and for what a scan's time is held against. */
EXPORT void scan_exponentials(const float *x, float *y, int64_t count) { isa()->exponentials(x, y, count); }

/* Floats of `starts`. */
EXPORT int64_t scan_starts_size(int64_t batch, int64_t length, int64_t channels, int64_t states) {
    scan_call s = {.shape = {.length = length, .channels = channels, .width = isa()->width}, .states = states};
    return START(&s, batch, 0, 0);
}

/* Sets the width and the tiles, samples first: only when they do not divide among the threads are channels split.
 * Returns the tiles of a sample. */
static int64_t plan(call_shape *shape) {
    shape->width = isa()->width;
    int64_t groups = GROUPS(*shape), tiles = 1;
    if (shape->threads > 1 && shape->batch % shape->threads) tiles = shape->threads < groups ? shape->threads : groups;
    shape->groups_per_tile = (groups + tiles - 1) / tiles;
    return (groups + shape->groups_per_tile - 1) / shape->groups_per_tile;
}

/* First axis of dB and dC. */
EXPORT int64_t scan_tiles(int64_t batch, int64_t channels, int64_t threads) {
    call_shape shape = {.batch = batch, .channels = channels, .threads = threads};
    return plan(&shape);
}

typedef struct {
    const void *call;
    const call_shape *shape;
    tile_function run;
    void *memory;
    int64_t first_tile, last_tile, tiles; /* tiles of a sample */
} share;

static void *work(void *argument) {
    const share *w = argument;
    int64_t per_tile = w->shape->groups_per_tile, groups = GROUPS(*w->shape);
#if ON_X86
    /* States that have decayed to denormals would cost a hundred times more each. */
    unsigned int saved = _mm_getcsr();
    _mm_setcsr(saved | 0x8040);
#endif
    for (int64_t i = w->first_tile; i < w->last_tile; i++) {
        int64_t first = i % w->tiles * per_tile, last = first + per_tile;
        w->run(w->call, i / w->tiles, first, last < groups ? last : groups, w->memory);
    }
#if ON_X86
    _mm_setcsr(saved);
#endif
    return NULL;
}

/* Runs all tiles, with `vectors` of work space per channel group of a tile and `more` per tile. 0, or 1 without memory. */
static int run(int function, const void *call, call_shape *shape, int64_t vectors, int64_t more) {
    if (!shape->batch || !shape->length || !shape->channels) return 0;
    int64_t tiles = plan(shape), total = tiles * shape->batch;
    int64_t threads = shape->threads < total ? shape->threads : total;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;

    size_t bytes = (size_t)(shape->groups_per_tile * vectors + more) * (size_t)shape->width * sizeof(float);
    bytes = (bytes + 63) / 64 * 64;
    char *memory = malloc(bytes * (size_t)threads + 64);
    if (!memory) return 1;
    char *aligned = memory + (64 - (uintptr_t)memory % 64);

    share shares[MAX_THREADS];
    for (int64_t i = 0; i < threads; i++)
        shares[i] = (share){call, shape, isa()->run[function], aligned + (size_t)i * bytes,
                            total * i / threads, total * (i + 1) / threads, tiles};
#ifndef _WIN32
    pthread_t ids[MAX_THREADS];
    int started[MAX_THREADS];
    for (int64_t i = 1; i < threads; i++) started[i] = !pthread_create(&ids[i], NULL, work, &shares[i]);
    work(&shares[0]);
    for (int64_t i = 1; i < threads; i++) started[i] ? (void)pthread_join(ids[i], NULL) : (void)work(&shares[i]);
#else
    for (int64_t i = 0; i < threads; i++) work(&shares[i]);
#endif
    free(memory);
    return 0;
}

/* All four return 0, or 1 without memory, or 2 when N or K is too large. */

EXPORT int scan_forward(scan_call *s) {
    if (s->states > MAX_STATES) return 2;
    return run(SCAN_FORWARD, s, &s->shape, 2 * s->states, 0);
}

EXPORT int scan_backward(scan_call *s) {
    if (s->states > MAX_STATES) return 2;
    return run(SCAN_BACKWARD, s, &s->shape, 4 * s->states + 2, 2 * BLOCK * s->states + 2 * ROWS(s->states));
}

EXPORT int conv_forward(conv_call *s) {
    if (s->taps > MAX_TAPS) return 2;
    return run(CONV_FORWARD, s, &s->shape, s->taps, 0);
}

EXPORT int conv_backward(conv_call *s) {
    if (s->taps > MAX_TAPS) return 2;
    return run(CONV_BACKWARD, s, &s->shape, 3 * s->taps + 1, 0);
}
