/* Which vector arithmetic does one instruction set offer? Included once per instruction set, with WIDTH lanes,
 * TARGET and NAME(x) defined; see selective_scan.c. NaN stays NaN in every function here. */

#define vf NAME(vf)
#define vi NAME(vi)
typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));

#define INLINE static inline __attribute__((always_inline)) TARGET

/* Rounds to integer when added and subtracted; the low mantissa bits of x + ROUND are then 127 + round(x). */
#define ROUND (12582912.0f + 127.0f)

static __attribute__((noinline)) TARGET void NAME(load_some)(vf *v, const float *p, int64_t lanes) {
    memset(v, 0, sizeof *v);
    memcpy(v, p, (size_t)lanes * sizeof(float));
}

static __attribute__((noinline)) TARGET void NAME(store_some)(float *p, const vf *v, int64_t lanes) {
    memcpy(p, v, (size_t)lanes * sizeof(float));
}

INLINE vf NAME(load)(const float *p, int64_t lanes) {
    vf full, some;
    if (lanes == WIDTH) {
        memcpy(&full, p, sizeof full);
        return full;
    }
    NAME(load_some)(&some, p, lanes);
    return some;
}

INLINE void NAME(store)(float *p, vf v, int64_t lanes) {
    vf some;
    if (lanes == WIDTH) {
        memcpy(p, &v, sizeof v);
        return;
    }
    some = v;
    NAME(store_some)(p, &some, lanes);
}

/* The larger (smaller) lane; v where v is NaN. */
#if defined(ISA_AVX2)
INLINE vf NAME(at_least)(vf v, float bound) { return (vf)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)v); }
INLINE vf NAME(at_most)(vf v, float bound) { return (vf)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)v); }
#elif !defined(ISA_AVX512)
INLINE vf NAME(at_least)(vf v, float bound) {
    vi below = v < bound;
    vf b = bound - (vf){0};
    return (vf)((below & (vi)b) | (~below & (vi)v));
}
INLINE vf NAME(at_most)(vf v, float bound) { return -NAME(at_least)(-v, -bound); }
#endif

/* 2^x of x = step * rate as 2^n (1 + f q(f)), n integer, |f| <= 1/2; q is the minimax polynomial of (2^f - 1)/f. */
typedef struct {
    vf scale, fraction, slope; /* 2^n, f, q(f) */
} NAME(power);

INLINE NAME(power) NAME(power_of_two)(vf step, vf rate) {
    NAME(power) p;
#if defined(ISA_AVX512)
    /* vscalef saturates by itself, so x needs no clamp and is never rounded on its own. */
    vf n = (step * rate + 12582912.0f) - 12582912.0f;
    p.fraction = step * rate - n;
    p.scale = n;
#else
    vf x = NAME(at_most)(NAME(at_least)(step * rate, -126.0f), 128.0f);
    vf shifted = x + ROUND;
    p.fraction = x - (shifted - ROUND);
    p.scale = (vf)((vi)shifted << 23);
#endif
    vf f = p.fraction;
    vf q = f * 0x1.4308fap-13f + 0x1.5f07b4p-10f;
    q = q * f + 0x1.3b2ba0p-7f;
    q = q * f + 0x1.c6af6ep-5f;
    q = q * f + 0x1.ebfbdep-3f;
    p.slope = q * f + 0x1.62e430p-1f;
    return p;
}

INLINE vf NAME(scaled)(vf v, NAME(power) p) {
#if defined(ISA_AVX512)
    return (vf)_mm512_scalef_ps((__m512)v, (__m512)p.scale);
#else
    return v * p.scale;
#endif
}

/* 2^(step rate) h, accurate to the last bits of 1 - 2^x too: long memories do not drift. */
INLINE vf NAME(decayed)(vf h, vf step, vf rate) {
    NAME(power) p = NAME(power_of_two)(step, rate);
    return NAME(scaled)((h * p.fraction) * p.slope + h, p);
}

/* 2^(step rate) - 1 */
INLINE vf NAME(decay_minus_one)(vf step, vf rate) {
    NAME(power) p = NAME(power_of_two)(step, rate);
    vf one = 1.0f - (vf){0};
    vf scale = NAME(scaled)(one, p);
    return scale * (p.fraction * p.slope) + (scale - 1.0f);
}

INLINE vf NAME(exp)(vf x) {
    vf one = 1.0f - (vf){0};
    return NAME(decayed)(one, x, LOG2E - (vf){0});
}

static TARGET void NAME(exponentials)(const float *x, float *y, int64_t count) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        int64_t lanes = count - i < WIDTH ? count - i : WIDTH;
        NAME(store)(y + i, NAME(exp)(NAME(load)(x + i, lanes)), lanes);
    }
}

INLINE vf NAME(sigmoid)(vf x) { return 1.0f / (1.0f + NAME(exp)(-x)); }

/* log(1 + e^x) and its slope, the sigmoid: max(x, 0) + 2 artanh(s), s = e / (2 + e), e = exp(-|x|). */
INLINE vf NAME(softplus)(vf x, vf *slope) {
    vi negative = x < 0.0f;
    vf e = NAME(exp)((vf)((vi)x | INT32_MIN)); /* exp(-|x|) */
    vf inverse = 1.0f / ((2.0f + e) * (1.0f + e));
    vf s = e * (1.0f + e) * inverse, w = s * s;
    vf r = w * 0.1408916711807251f + 0.13980300724506378f;
    r = r * w + 0.20012454688549042f;
    r = r * w + 0.3333315849304199f;
    r = r * w + 1.0f;
    vf one = 1.0f - (vf){0};
    *slope = (vf)((negative & (vi)e) | (~negative & (vi)one)) * (2.0f + e) * inverse;
    return (vf)(~negative & (vi)x) + 2.0f * s * r;
}

/* Lane i of the result is the sum over the lanes of rows[i]; rows is overwritten. */
INLINE vf NAME(row_sums)(vf rows[WIDTH]) {
#if defined(__GNUC__) && !defined(__clang__)
    vi lane;
    for (int i = 0; i < WIDTH; i++) lane[i] = i;
#pragma GCC unroll 4
    for (int width = 1; width < WIDTH; width *= 2) {
        vi second = (lane & width) != 0;
        vi low = lane + (second & (WIDTH - width)), high = low + width;
#pragma GCC unroll 8
        for (int i = 0; i < WIDTH / 2 / width; i++)
            rows[i] = __builtin_shuffle(rows[2 * i], rows[2 * i + 1], low) +
                      __builtin_shuffle(rows[2 * i], rows[2 * i + 1], high);
    }
    return rows[0];
#else
    vf sums = {0};
    for (int i = 0; i < WIDTH; i++)
        for (int j = 0; j < WIDTH; j++) sums[i] += rows[i][j];
    return sums;
#endif
}
