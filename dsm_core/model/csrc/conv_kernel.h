/* How is a depthwise causal convolution with SiLU computed for WIDTH channels? Included once per instruction set.
 *
 *     pre_t = bias + sum_k weight_k x_(t - K + 1 + k),    y_t = pre_t sigmoid(pre_t)
 *
 * The backward pass recomputes pre_t; a few steps of its gradient are carried from block to block. */

/* Weights of one channel group as (K, WIDTH). */
INLINE void NAME(read_weights)(int64_t K, const conv_call *s, int64_t b, int64_t c0, int64_t lanes, vf *weights) {
    const float *w = s->weight + b * s->weight_batch + c0 * K;
    float *rows = (float *)weights;
    for (int64_t k = 0; k < K; k++)
        for (int64_t c = 0; c < WIDTH; c++) rows[k * WIDTH + c] = c < lanes ? w[c * K + k] : 0.0f;
}

/* x of steps t - K + 1 to t, zero before the first. */
INLINE void NAME(read_window)(int64_t K, const conv_call *s, const float *x, int64_t t, int64_t lanes, vf *window) {
    vf none = {0};
    for (int64_t k = 0; k < K; k++) {
        int64_t from = t - K + 1 + k;
        window[k] = from < 0 ? none : NAME(load)(x + from * s->x_step, lanes);
    }
}

INLINE vf NAME(convolve)(int64_t K, const vf *window, const vf *weights, vf bias) {
    for (int64_t k = 0; k < K; k++) bias += weights[k] * window[k];
    return bias;
}

INLINE void NAME(conv_forward_taps)(int64_t K, const conv_call *s, int64_t b, int64_t first, int64_t last, vf *weights) {
    vf window[MAX_TAPS];
    for (int64_t g = first; g < last; g++)
        NAME(read_weights)(K, s, b, g * WIDTH, LANES(s, g * WIDTH), weights + (g - first) * K);
    for (int64_t t0 = 0; t0 < s->shape.length; t0 += CONV_BLOCK) {
        int64_t end = s->shape.length - t0 < CONV_BLOCK ? s->shape.length : t0 + CONV_BLOCK;
        for (int64_t g = first; g < last; g++) {
            int64_t c0 = g * WIDTH, lanes = LANES(s, c0);
            const float *x = s->x + b * s->x_batch + c0;
            vf bias = NAME(load)(s->bias + b * s->bias_batch + c0, lanes);
            for (int64_t t = t0; t < end; t++) {
                NAME(read_window)(K, s, x, t, lanes, window);
                vf pre = NAME(convolve)(K, window, weights + (g - first) * K, bias);
                NAME(store)(s->y + (b * s->shape.length + t) * s->shape.channels + c0, pre * NAME(sigmoid)(pre), lanes);
            }
        }
    }
}

INLINE void NAME(conv_backward_taps)(int64_t K, const conv_call *s, int64_t b, int64_t first, int64_t last, vf *weights) {
    const int64_t L = s->shape.length, groups = last - first;
    vf window[MAX_TAPS], *dweight = weights + groups * K, *dbias = dweight + groups * K, *tails = dbias + groups;
    vf dpre[MAX_TAPS + CONV_BLOCK]; /* the last K - 1 of the block before, then this block's */
    memset(dweight, 0, (size_t)(groups * (2 * K + 1)) * sizeof(vf));
    for (int64_t g = first; g < last; g++)
        NAME(read_weights)(K, s, b, g * WIDTH, LANES(s, g * WIDTH), weights + (g - first) * K);
    for (int64_t t0 = 0; t0 < L; t0 += CONV_BLOCK) {
        int64_t steps = L - t0 < CONV_BLOCK ? L - t0 : CONV_BLOCK;
        for (int64_t g = 0; g < groups; g++) {
            int64_t c0 = (first + g) * WIDTH, lanes = LANES(s, c0), out = b * L * s->shape.channels + c0;
            const float *x = s->x + b * s->x_batch + c0;
            const vf *w = weights + g * K;
            vf bias = NAME(load)(s->bias + b * s->bias_batch + c0, lanes), *tail = tails + g * K, *now = dpre + K - 1;
            vf recent_dbias = {0}, recent_dweight[MAX_TAPS];
            memset(recent_dweight, 0, (size_t)K * sizeof(vf));
            memcpy(dpre, tail, (size_t)(K - 1) * sizeof(vf));
            for (int64_t i = 0; i < steps; i++) {
                int64_t t = t0 + i;
                NAME(read_window)(K, s, x, t, lanes, window);
                vf pre = NAME(convolve)(K, window, w, bias), gate = NAME(sigmoid)(pre);
                vf dy = NAME(load)(s->dy + b * s->dy_batch + t * s->dy_step + c0, lanes);
                now[i] = dy * (gate * (1.0f + pre * (1.0f - gate)));
                recent_dbias += now[i];
                for (int64_t k = 0; k < K; k++) recent_dweight[k] += now[i] * window[k];
                if (t < K - 1) continue;
                vf dx = {0};
                for (int64_t k = 0; k < K; k++) dx += w[k] * now[i - k];
                NAME(store)(s->dx + out + (t - K + 1) * s->shape.channels, dx, lanes);
            }
            dbias[g] += recent_dbias;
            for (int64_t k = 0; k < K; k++) dweight[g * K + k] += recent_dweight[k];
            memmove(tail, dpre + steps, (size_t)(K - 1) * sizeof(vf));
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t c0 = (first + g) * WIDTH, lanes = LANES(s, c0), out = b * L * s->shape.channels + c0;
        /* The last K - 1 inputs reach fewer outputs. */
        for (int64_t t = L < K - 1 ? 0 : L - K + 1; t < L; t++) {
            vf dx = {0};
            for (int64_t k = t + K - L; k < K; k++) dx += weights[g * K + k] * tails[g * K + t + 2 * K - 2 - k - L];
            NAME(store)(s->dx + out + t * s->shape.channels, dx, lanes);
        }
        NAME(store)(s->dbias + b * s->shape.channels + c0, dbias[g], lanes);
        for (int64_t k = 0; k < K; k++)
            for (int64_t c = 0; c < lanes; c++)
                s->dweight[(b * s->shape.channels + c0 + c) * K + k] = ((float *)(dweight + g * K + k))[c];
    }
}

static TARGET void NAME(conv_forward_tile)(const void *call, int64_t b, int64_t first, int64_t last, void *memory) {
    const conv_call *s = call;
    if (s->taps == 4)
        NAME(conv_forward_taps)(4, s, b, first, last, memory);
    else
        NAME(conv_forward_taps)(s->taps, s, b, first, last, memory);
}

static TARGET void NAME(conv_backward_tile)(const void *call, int64_t b, int64_t first, int64_t last, void *memory) {
    const conv_call *s = call;
    if (s->taps == 4)
        NAME(conv_backward_taps)(4, s, b, first, last, memory);
    else
        NAME(conv_backward_taps)(s->taps, s, b, first, last, memory);
}
