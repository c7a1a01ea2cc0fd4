/* How is one group of WIDTH channels scanned over one block of steps? Included once per instruction set.
 *
 * Lanes are channels; a block's states stay in registers and the first-level cache. `tile` is the part of a sample that
 * one thread works on: all steps, and channel groups `first` to `last`. */

/* What a block needs of u, delta and the gate, loaded once and shared by all states. */
typedef struct {
    vf u[BLOCK], step[BLOCK], slope[BLOCK], x[BLOCK]; /* u, delta, d delta / d raw delta, delta u */
} NAME(inputs);

INLINE void NAME(read_inputs)(const scan_call *s, int64_t b, int64_t t0, int64_t steps, int64_t c0, int64_t lanes,
                              NAME(inputs) * in) {
    const float *u = s->u + b * s->u_batch + t0 * s->u_step + c0;
    const float *delta = s->delta + b * s->delta_batch + t0 * s->delta_step + c0;
    for (int64_t t = 0; t < steps; t++) {
        in->u[t] = NAME(load)(u + t * s->u_step, lanes);
        vf raw = NAME(load)(delta + t * s->delta_step, lanes);
        in->slope[t] = 1.0f - (vf){0};
        in->step[t] = s->softplus ? NAME(softplus)(raw, &in->slope[t]) : raw;
        in->x[t] = in->step[t] * in->u[t];
    }
}

INLINE void NAME(fetch_rows)(const float *p, int64_t step, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) __builtin_prefetch(p + i * step, 0, 2);
}

/* Brings what one channel group reads and writes in the block at t0 into the second-level cache, a block ahead of its
 * turn: its rows lie a stride apart, and backwards in time, where the hardware does not fetch by itself (measured). */
INLINE void NAME(fetch_group)(const scan_call *s, int64_t b, int64_t t0, int64_t group) {
    const int64_t steps = STEPS(s, t0), row = s->shape.channels, c0 = group * WIDTH;
    const int64_t out = (b * s->shape.length + t0) * row + c0;
    NAME(fetch_rows)(s->u + b * s->u_batch + t0 * s->u_step + c0, s->u_step, steps);
    NAME(fetch_rows)(s->delta + b * s->delta_batch + t0 * s->delta_step + c0, s->delta_step, steps);
    if (s->z) NAME(fetch_rows)(s->z + b * s->z_batch + t0 * s->z_step + c0, s->z_step, steps);
    if (s->starts) NAME(fetch_rows)(s->starts + START(s, b, t0 / BLOCK, group), WIDTH, s->states);
    if (!s->dy) {
        NAME(fetch_rows)(s->y + out, row, steps);
        return;
    }
    NAME(fetch_rows)(s->dy + b * s->dy_batch + t0 * s->dy_step + c0, s->dy_step, steps);
    NAME(fetch_rows)(s->du + out, row, steps);
    NAME(fetch_rows)(s->ddelta + out, row, steps);
    if (s->z) NAME(fetch_rows)(s->dz + out, row, steps);
}

/* A of one channel group as (N, WIDTH), in units of log 2 so that exponentials are powers of two. */
INLINE void NAME(read_rates)(const scan_call *s, int64_t b, int64_t c0, int64_t lanes, vf *rates) {
    const float *A = s->A + b * s->A_batch + c0 * s->states;
    float *r = (float *)rates;
    for (int64_t n = 0; n < s->states; n++)
        for (int64_t c = 0; c < WIDTH; c++) r[n * WIDTH + c] = c < lanes ? A[c * s->states + n] * LOG2E : 0.0f;
}

INLINE vf NAME(read_skip)(const scan_call *s, int64_t b, int64_t c0, int64_t lanes) {
    vf none = {0};
    return s->D ? NAME(load)(s->D + b * s->D_batch + c0, lanes) : none;
}

/* h of the last step, y of every step. N is a literal where it can be, so that the states live in registers. */
INLINE void NAME(forward_block)(int64_t N, const scan_call *s, int64_t steps, const float *B, const float *C,
                                const NAME(inputs) * in, const vf *rates, vf *state, vf *y) {
    vf h[MAX_STATES];
    for (int64_t n = 0; n < N; n++) h[n] = state[n];
    for (int64_t t = 0; t < steps; t++, B += s->B_step, C += s->C_step) {
        vf step = in->step[t], x = in->x[t], even = {0}, odd = {0};
#pragma GCC unroll 16
        for (int64_t n = 0; n < N; n++) {
            h[n] = x * B[n] + NAME(decayed)(h[n], step, rates[n]);
            if (n & 1)
                odd += h[n] * C[n];
            else
                even += h[n] * C[n];
        }
        y[t] = even + odd;
    }
    for (int64_t n = 0; n < N; n++) state[n] = h[n];
}

static TARGET void NAME(scan_forward_tile)(const void *call, int64_t b, int64_t first, int64_t last, void *memory) {
    const scan_call *s = call;
    const int64_t N = s->states, groups = last - first;
    vf *rates = memory, *states = rates + groups * N;
    NAME(inputs) in;
    vf y[BLOCK];
    memset(states, 0, (size_t)(groups * N) * sizeof(vf));
    for (int64_t g = 0; g < groups; g++) {
        int64_t c0 = (first + g) * WIDTH;
        NAME(read_rates)(s, b, c0, LANES(s, c0), rates + g * N);
    }
    for (int64_t t0 = 0; t0 < s->shape.length; t0 += BLOCK) {
        int64_t steps = STEPS(s, t0);
        const float *B = s->B + b * s->B_batch + t0 * s->B_step, *C = s->C + b * s->C_batch + t0 * s->C_step;
        for (int64_t g = 0; g < groups; g++) {
            int64_t c0 = (first + g) * WIDTH, lanes = LANES(s, c0);
            vf *state = states + g * N;
            if (t0 + BLOCK < s->shape.length) NAME(fetch_group)(s, b, t0 + BLOCK, first + g);
            if (s->starts) memcpy(s->starts + START(s, b, t0 / BLOCK, first + g), state, (size_t)N * sizeof(vf));
            NAME(read_inputs)(s, b, t0, steps, c0, lanes, &in);
            if (N == 16)
                NAME(forward_block)(16, s, steps, B, C, &in, rates + g * N, state, y);
            else if (N == 8)
                NAME(forward_block)(8, s, steps, B, C, &in, rates + g * N, state, y);
            else
                NAME(forward_block)(N, s, steps, B, C, &in, rates + g * N, state, y);
            vf skip = NAME(read_skip)(s, b, c0, lanes);
            for (int64_t t = 0; t < steps; t++) {
                vf out = y[t] + skip * in.u[t];
                if (s->z) {
                    vf z = NAME(load)(s->z + b * s->z_batch + (t0 + t) * s->z_step + c0, lanes);
                    out *= z * NAME(sigmoid)(z);
                }
                NAME(store)(s->y + (b * s->shape.length + t0 + t) * s->shape.channels + c0, out, lanes);
            }
        }
    }
}

/* Work space of one channel group in the backward pass. */
typedef struct {
    vf *rates, *carry, *dA;        /* (N) */
    vf *decayed, *decay_minus_one; /* (BLOCK, N): exp(delta A) h of the step before, exp(delta A) - 1 */
    vf *dB, *dC;                   /* ROWS(N), summed over channel groups lane by lane */
} NAME(work);

INLINE void NAME(recompute_block)(int64_t N, const scan_call *s, int64_t steps, const float *B, const float *C,
                                  const NAME(inputs) * in, const float *start, NAME(work) w, vf *y) {
    vf h[MAX_STATES];
    memcpy(h, start, (size_t)N * sizeof(vf));
    for (int64_t t = 0; t < steps; t++, B += s->B_step, C += s->C_step) {
        vf step = in->step[t], x = in->x[t], even = {0}, odd = {0};
        vf *decayed = w.decayed + t * N, *decay = w.decay_minus_one + t * N;
#pragma GCC unroll 16
        for (int64_t n = 0; n < N; n++) {
            vf d = NAME(decay_minus_one)(step, w.rates[n]);
            vf kept = d * h[n] + h[n];
            decay[n] = d;
            decayed[n] = kept;
            h[n] = x * B[n] + kept;
            if (n & 1)
                odd += h[n] * C[n];
            else
                even += h[n] * C[n];
        }
        y[t] = even + odd;
    }
}

/* Last step first: dx is the gradient of delta u, dexponent that of delta through exp(delta A). */
INLINE void NAME(reverse_block)(int64_t N, const scan_call *s, int64_t steps, const float *B, const float *C,
                                const NAME(inputs) * in, NAME(work) w, const vf *dy, vf *dx, vf *dexponent) {
    for (int64_t t = steps - 1; t >= 0; t--) {
        vf step = in->step[t], x = in->x[t], out = dy[t], x_even = {0}, x_odd = {0}, e_even = {0}, e_odd = {0};
        const float *Bt = B + t * s->B_step, *Ct = C + t * s->C_step;
        vf *decayed = w.decayed + t * N, *decay = w.decay_minus_one + t * N, *dB = w.dB + t * N, *dC = w.dC + t * N;
#pragma GCC unroll 16
        for (int64_t n = 0; n < N; n++) {
            vf g = out * Ct[n] + w.carry[n], kept = decayed[n], e = g * kept;
            dC[n] += out * (x * Bt[n] + kept);
            dB[n] += g * x;
            w.dA[n] += e * step;
            w.carry[n] = decay[n] * g + g;
            if (n & 1) {
                x_odd += g * Bt[n];
                e_odd += e * w.rates[n];
            } else {
                x_even += g * Bt[n];
                e_even += e * w.rates[n];
            }
        }
        dx[t] = x_even + x_odd;
        dexponent[t] = (e_even + e_odd) * LOGE2;
    }
}

static TARGET void NAME(scan_backward_tile)(const void *call, int64_t b, int64_t first, int64_t last, void *memory) {
    const scan_call *s = call;
    const int64_t N = s->states, groups = last - first, L = s->shape.length;
    vf *rates = memory, *carry = rates + groups * N, *dA = carry + groups * N, *dD = dA + groups * N;
    vf *recent_dA = dD + groups, *recent_dD = recent_dA + groups * N; /* added to dA and dD every RECENT blocks */
    NAME(work) w = {.decayed = recent_dD + groups};
    w.decay_minus_one = w.decayed + BLOCK * N;
    w.dB = w.decay_minus_one + BLOCK * N;
    w.dC = w.dB + ROWS(N);
    NAME(inputs) in;
    vf y[BLOCK], dy[BLOCK], dx[BLOCK], dexponent[BLOCK];
    memset(carry, 0, (size_t)(groups * (3 * N + 2)) * sizeof(vf));
    for (int64_t g = 0; g < groups; g++) {
        int64_t c0 = (first + g) * WIDTH;
        NAME(read_rates)(s, b, c0, LANES(s, c0), rates + g * N);
    }
    for (int64_t t0 = (L - 1) / BLOCK * BLOCK; t0 >= 0; t0 -= BLOCK) {
        int64_t steps = STEPS(s, t0);
        const float *B = s->B + b * s->B_batch + t0 * s->B_step, *C = s->C + b * s->C_batch + t0 * s->C_step;
        memset(w.dB, 0, (size_t)(2 * ROWS(N)) * sizeof(vf));
        for (int64_t g = 0; g < groups; g++) {
            int64_t c0 = (first + g) * WIDTH, lanes = LANES(s, c0), out0 = (b * L + t0) * s->shape.channels + c0;
            const float *start = s->starts + START(s, b, t0 / BLOCK, first + g);
            if (t0) NAME(fetch_group)(s, b, t0 - BLOCK, first + g);
            w.rates = rates + g * N, w.carry = carry + g * N, w.dA = recent_dA + g * N;
            NAME(read_inputs)(s, b, t0, steps, c0, lanes, &in);
            if (N == 16)
                NAME(recompute_block)(16, s, steps, B, C, &in, start, w, y);
            else
                NAME(recompute_block)(N, s, steps, B, C, &in, start, w, y);
            vf skip = NAME(read_skip)(s, b, c0, lanes);
            for (int64_t t = 0; t < steps; t++) {
                dy[t] = NAME(load)(s->dy + b * s->dy_batch + (t0 + t) * s->dy_step + c0, lanes);
                if (s->z) {
                    vf z = NAME(load)(s->z + b * s->z_batch + (t0 + t) * s->z_step + c0, lanes);
                    vf gate = NAME(sigmoid)(z);
                    vf dz = dy[t] * (y[t] + skip * in.u[t]) * (gate * (1.0f + z * (1.0f - gate)));
                    NAME(store)(s->dz + out0 + t * s->shape.channels, dz, lanes);
                    dy[t] *= z * gate;
                }
                recent_dD[g] += dy[t] * in.u[t];
            }
            if (N == 16)
                NAME(reverse_block)(16, s, steps, B, C, &in, w, dy, dx, dexponent);
            else
                NAME(reverse_block)(N, s, steps, B, C, &in, w, dy, dx, dexponent);
            for (int64_t t = 0; t < steps; t++) {
                NAME(store)(s->du + out0 + t * s->shape.channels, dx[t] * in.step[t] + skip * dy[t], lanes);
                NAME(store)(s->ddelta + out0 + t * s->shape.channels, (dx[t] * in.u[t] + dexponent[t]) * in.slope[t], lanes);
            }
        }
        int64_t part = ((first / s->shape.groups_per_tile * s->shape.batch + b) * L + t0) * N;
        if (t0) {
            NAME(fetch_rows)(B - BLOCK * s->B_step, s->B_step, BLOCK);
            NAME(fetch_rows)(C - BLOCK * s->C_step, s->C_step, BLOCK);
            NAME(fetch_rows)(s->dB + part - BLOCK * N, N, BLOCK);
            NAME(fetch_rows)(s->dC + part - BLOCK * N, N, BLOCK);
        }
        for (int64_t i = 0; i < steps * N; i += WIDTH) {
            int64_t rows = steps * N - i < WIDTH ? steps * N - i : WIDTH;
            NAME(store)(s->dB + part + i, NAME(row_sums)(w.dB + i), rows);
            NAME(store)(s->dC + part + i, NAME(row_sums)(w.dC + i), rows);
        }
        if (t0 / BLOCK % RECENT == 0) {
            for (int64_t i = 0; i < groups * (N + 1); i++) dA[i] += recent_dA[i];
            memset(recent_dA, 0, (size_t)(groups * (N + 1)) * sizeof(vf));
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t c0 = (first + g) * WIDTH, lanes = LANES(s, c0);
        NAME(store)(s->dD + b * s->shape.channels + c0, dD[g], lanes);
        for (int64_t n = 0; n < N; n++)
            for (int64_t c = 0; c < lanes; c++)
                s->dA[(b * s->shape.channels + c0 + c) * N + n] = ((float *)(dA + g * N + n))[c];
    }
}
