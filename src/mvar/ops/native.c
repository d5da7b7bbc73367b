/* What lies between a block's matrix products at inference on a CPU, each in one pass over memory.

   Letters: B images, L tokens, h heads of P = 64 channels, E = h P, N state size, D = E + 2 N channels of the short
   convolution, C width. Tokens are float or bfloat16 (`half`); all arithmetic is float. `mvar.ops.native` says what each
   function computes and checks what it is given.
*/
#include <math.h>
#include <stdint.h>
#include <string.h>

/* V numbers of a vector, as wide as the processor's: operations on wider ones are compiled to many slow ones, comparisons
   number by number. WIDE vectors of ROWS rows are summed at once: what fits into the registers. */
#if defined(__AVX512F__)
enum { V = 16, WIDE = 4 };
#elif defined(__AVX2__)
enum { V = 8, WIDE = 2 };
#else
enum { V = 4, WIDE = 2 };
#endif
enum { P = 64, PV = P / V, TAPS = 4, TILE = 32, ROWS = 4 };

typedef float vec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * V), aligned(2), may_alias));

/* As in `mvar.ops.ssd`: exp of this is 0, and what decays more forgets no more. */
#define FORGOTTEN -104.0

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const void *at, long i, int half) {
    if (!half) return *(const vec *)((const float *)at + i);
    return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)at + i), bits) << 16);
}

/* To the nearest, ties to even; a NaN stays one. */
INLINE void store(void *at, long i, int half, vec x) {
    if (!half) {
        *(vec *)((float *)at + i) = x;
        return;
    }
    bits b = (bits)x, rounded = b + 0x7fff + ((b >> 16) & 1), nan = (bits)(x != x);
    *(halves *)((uint16_t *)at + i) = __builtin_convertvector(((rounded & ~nan) | (b & nan)) >> 16, halves);
}

INLINE float load1(const void *at, long i, int half) {
    float x;
    if (!half) return ((const float *)at)[i];
    uint32_t b = (uint32_t)((const uint16_t *)at)[i] << 16;
    memcpy(&x, &b, 4);
    return x;
}

INLINE float sum(vec x) {
    float s = 0;
    for (int i = 0; i < V; i++) s += x[i];
    return s;
}

/* e^x: 2^n e^r with |r| <= log(2) / 2, e^r by its series; relative error below 2e-7, 0 and infinity beyond -87 and 88. */
INLINE vec exp_(vec x) {
    const vec low = (vec){} - 87.0f, high = (vec){} + 88.0f, magic = (vec){} + 12582912.0f;
    bits under = (bits)(x < low), over = (bits)(x > high);
    x = (vec)(((bits)x & ~(under | over)) | ((bits)low & under) | ((bits)high & over));
    vec shifted = x * 1.44269504f + magic, n = shifted - magic;
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec e = (vec){} + 1.3888889e-3f;
    e = e * r + 8.3333333e-3f;
    e = e * r + 4.1666667e-2f;
    e = e * r + 1.6666667e-1f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    bits power = (bits)e + ((bits)shifted << 23), infinity = (bits){} + 0x7f800000u;
    return (vec)((power & ~(under | over)) | (infinity & over));
}

INLINE vec silu(vec x) { return x / (1.0f + exp_(-x)); }

/* Strong decays leave numbers below the smallest normal one, with which products take ten times as long. The setting is
   this thread's and PyTorch's too, so it is put back. */
INLINE unsigned denormals_are_zero(void) {
#ifdef __SSE__
    unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);
    return before;
#else
    return 0;
#endif
}

INLINE void restore(unsigned before) {
#ifdef __SSE__
    __builtin_ia32_ldmxcsr(before);
#else
    (void)before;
#endif
}

typedef struct {
    long B, L, h, N;
    const void *projected;                                                /* (B, L, E + D + h): gate, convolved, steps */
    const float *conv_weight, *conv_bias, *dt_bias, *A, *skip, *norm;     /* (TAPS, D), (D), (h), (h), (h), (E) */
    const float *tail, *state;                                            /* (B, TAPS - 1, D), (B, h, N, P) */
    float *next_tail, *next_state, *scratch;                              /* the last: (B, L, 2 N + TILE) */
    void *y;                                                              /* (B, L, E) */
} Mamba;

/* A vector of channels of a token, convolved. */
INLINE vec conv_silu(const Mamba *m, long b, long t, long channel, int half) {
    long E = m->h * P, D = E + 2 * m->N, stride = E + D + m->h;
    vec y = *(const vec *)(m->conv_bias + channel);
    for (int k = 0; k < TAPS; k++) {
        long s = t + k - (TAPS - 1);
        vec x = s < 0 ? load(m->tail, (b * (TAPS - 1) + TAPS - 1 + s) * D + channel, 0)
                      : load(m->projected, (b * m->L + s) * stride + E + channel, half);
        y += x * *(const vec *)(m->conv_weight + k * D + channel);
    }
    return silu(y);
}

/* Keys and queries of a tile, and the product of each query with the keys up to its own; zeros after it. */
INLINE void keys_and_queries(const Mamba *m, long b, long start, long count, int half) {
    long N = m->N, width = 2 * N + TILE;
    for (long i = 0; i < count; i++) {
        float *row = m->scratch + (b * m->L + start + i) * width;
        for (long n = 0; n < 2 * N; n += V) store(row, n, 0, conv_silu(m, b, start + i, m->h * P + n, half));
        float *pairs = row + 2 * N;
        memset(pairs, 0, TILE * sizeof(float));
        for (long j = 0; j <= i; j++) {
            const float *key = m->scratch + (b * m->L + start + j) * width;
            vec dot = {};
            for (long n = 0; n < N; n += V) dot += *(const vec *)(row + N + n) * *(const vec *)(key + n);
            pairs[j] = sum(dot);
        }
    }
}

/* One head of one image over all tokens: convolution, scan, skip and gate. */
INLINE void head(const Mamba *m, long b, long head, int half) {
    long N = m->N, E = m->h * P, D = E + 2 * N, stride = E + D + m->h, width = 2 * N + TILE;
    float *S = m->next_state + (b * m->h + head) * N * P, X[TILE * P] __attribute__((aligned(64)));
    /* The running sum of log decays, exact, rounded, and what rounding drops: see `mvar.ops.ssd`. */
    double sums[TILE];
    float dt[TILE], c[TILE], rest[TILE], decay[TILE], mix[ROWS][TILE];
    memcpy(S, m->state + (b * m->h + head) * N * P, N * P * sizeof(float));

    for (long start = 0; start < m->L; start += TILE) {
        long count = m->L - start < TILE ? m->L - start : TILE;
        const float *rows = m->scratch + (b * m->L + start) * width;
        memset(dt, 0, sizeof dt);
        memset(X, 0, sizeof X);
        double log_decay = 0;
        for (long i = 0; i < TILE; i++) {
            if (i < count) {
                float raw = load1(m->projected, (b * m->L + start + i) * stride + E + D + head, half) + m->dt_bias[head];
                dt[i] = fmaxf(raw, 0) + log1pf(expf(-fabsf(raw)));
                double step = (double)dt[i] * m->A[head];
                log_decay += step < FORGOTTEN ? FORGOTTEN : step;
                for (int v = 0; v < PV; v++)
                    store(X, i * P + v * V, 0, conv_silu(m, b, start + i, head * P + v * V, half));
            }
            sums[i] = log_decay;
            c[i] = (float)log_decay;
            rest[i] = (float)(log_decay - c[i]);
        }
        for (int v = 0; v < TILE; v += V) store(decay, v, 0, exp_(load(c, v, 0)));

        for (long i = 0; i < count; i += ROWS) {
            const float *query[ROWS];
            for (int r = 0; r < ROWS; r++) {
                const float *row = rows + (i + r < count ? i + r : count - 1) * width;
                query[r] = row + N;
                for (int v = 0; v < TILE; v += V) {
                    vec since = (c[i + r] - load(c, v, 0)) + (rest[i + r] - load(rest, v, 0));
                    since = (vec)((bits)since & (bits)(since < 0.0f)); /* above the diagonal pairs are zero */
                    store(mix[r], v, 0, exp_(since) * load(dt, v, 0) * load(row + 2 * N, v, 0));
                }
            }
            for (int first = 0; first < PV; first += WIDE) {
                const float *read = S + first * V, *written = X + first * V;
                vec y[ROWS][WIDE] = {};
                for (long n = 0; n < N; n++)
                    for (int r = 0; r < ROWS; r++)
                        for (int v = 0; v < WIDE; v++) y[r][v] += query[r][n] * *(const vec *)(read + n * P + v * V);
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < WIDE; v++) y[r][v] *= decay[i + r];
                for (long j = 0; j < i + ROWS; j++)
                    for (int r = 0; r < ROWS; r++)
                        for (int v = 0; v < WIDE; v++) y[r][v] += mix[r][j] * *(const vec *)(written + j * P + v * V);
                for (int r = 0; r < ROWS && i + r < count; r++) {
                    long token = b * m->L + start + i + r;
                    for (int v = 0; v < WIDE; v++) {
                        long channel = head * P + (first + v) * V;
                        vec gate = silu(load(m->projected, token * stride + channel, half));
                        vec out = y[r][v] + m->skip[head] * *(const vec *)(written + (i + r) * P + v * V);
                        store(m->y, token * E + channel, half, out * gate);
                    }
                }
            }
        }

        float keep = decay[count - 1];
        for (long j = 0; j < count; j++) {
            float until_end = expf((float)(sums[count - 1] - sums[j])) * dt[j];
            for (int v = 0; v < PV; v++) *(vec *)(X + j * P + v * V) *= until_end;
        }
        for (long n = 0; n < N; n += ROWS)
            for (int first = 0; first < PV; first += WIDE) {
                float *state = S + n * P + first * V;
                vec s[ROWS][WIDE];
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < WIDE; v++) s[r][v] = keep * *(const vec *)(state + r * P + v * V);
                for (long j = 0; j < count; j++)
                    for (int r = 0; r < ROWS; r++)
                        for (int v = 0; v < WIDE; v++)
                            s[r][v] += rows[j * width + n + r] * *(const vec *)(X + j * P + (first + v) * V);
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < WIDE; v++) *(vec *)(state + r * P + v * V) = s[r][v];
            }
    }
}

INLINE void rms_norm(const Mamba *m, long token, float eps, int half) {
    long E = m->h * P;
    vec squares = {};
    for (long e = 0; e < E; e += V) {
        vec y = load(m->y, token * E + e, half);
        squares += y * y;
    }
    float factor = 1 / sqrtf(sum(squares) / E + eps);
    for (long e = 0; e < E; e += V)
        store(m->y, token * E + e, half, load(m->y, token * E + e, half) * *(const vec *)(m->norm + e) * factor);
}

INLINE void tail_of(const Mamba *m, long b, int half) {
    long E = m->h * P, D = E + 2 * m->N, stride = E + D + m->h;
    for (int k = 0; k < TAPS - 1; k++) {
        long s = m->L + k - (TAPS - 1);
        for (long d = 0; d < D; d += V) {
            vec x = s < 0 ? load(m->tail, (b * (TAPS - 1) + TAPS - 1 + s) * D + d, 0)
                          : load(m->projected, (b * m->L + s) * stride + E + d, half);
            store(m->next_tail, (b * (TAPS - 1) + k) * D + d, 0, x);
        }
    }
}

INLINE void mamba(const Mamba *m, float eps, int half, int threads) {
    long tiles = (m->L + TILE - 1) / TILE;
#pragma omp parallel num_threads(threads)
    {
        unsigned before = denormals_are_zero();
#pragma omp for schedule(dynamic)
        for (long i = 0; i < m->B * tiles; i++) {
            long start = i % tiles * TILE, left = m->L - start;
            keys_and_queries(m, i / tiles, start, left < TILE ? left : TILE, half);
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < m->B * m->h; i++) head(m, i / m->h, i % m->h, half);
#pragma omp for schedule(static) nowait
        for (long i = 0; i < m->B * m->L; i++) rms_norm(m, i, eps, half);
#pragma omp for schedule(static)
        for (long b = 0; b < m->B; b++) tail_of(m, b, half);
        restore(before);
    }
}

void mvar_mamba(const Mamba *m, float eps, int half, int threads) {
    if (half) mamba(m, eps, 1, threads);
    else mamba(m, eps, 0, threads);
}

typedef struct {
    long B, L, C;
    const float *x, *gate, *scale, *shift;               /* (B, L, C), the others (B, C) */
    const void *y;                                       /* (B, L, C), or none */
    float *sum;                                          /* (B, L, C) */
    void *out;                                           /* (B, L, C), or none */
} Adaln;

/* sum = x + gate y where there is a y; out = LayerNorm(sum) (1 + scale) + shift where there is an out. */
INLINE void adaln(const Adaln *a, long token, float eps, int half) {
    long C = a->C, at = token / a->L * C;
    const float *x = a->x + token * C;
    vec total = {}, squares = {};
    if (a->y) {
        float *after = a->sum + token * C;
        for (long c = 0; c < C; c += V) {
            vec s = load(x, c, 0) + load(a->gate + at, c, 0) * load(a->y, token * C + c, half);
            store(after, c, 0, s);
            total += s;
        }
        x = after;
    } else {
        for (long c = 0; c < C; c += V) total += load(x, c, 0);
    }
    if (!a->out) return;
    float mean = sum(total) / C;
    for (long c = 0; c < C; c += V) {
        vec d = load(x, c, 0) - mean;
        squares += d * d;
    }
    float factor = 1 / sqrtf(sum(squares) / C + eps);
    for (long c = 0; c < C; c += V) {
        vec normal = (load(x, c, 0) - mean) * factor;
        store(a->out, token * C + c, half, normal * (1.0f + load(a->scale + at, c, 0)) + load(a->shift + at, c, 0));
    }
}

void mvar_adaln(const Adaln *a, float eps, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long token = 0; token < a->B * a->L; token++) {
        if (half) adaln(a, token, eps, 1);
        else adaln(a, token, eps, 0);
    }
}

/* Queries, keys and values (B, L, 3, H, P) -> (3, B, H, L, P), queries of length `temperature` (H), keys of length 1. */
INLINE void heads(const void *qkv, const float *temperature, void *out, long B, long L, long H, long token, int half) {
    long b = token / L, t = token % L;
    for (long i = 0; i < 3 * H; i++) {
        long role = i / H, h = i % H, to = (((role * B + b) * H + h) * L + t) * P;
        vec x[PV], squares = {};
        for (int v = 0; v < PV; v++) {
            x[v] = load(qkv, (token * 3 * H + i) * P + v * V, half);
            squares += x[v] * x[v];
        }
        float length = fmaxf(sqrtf(sum(squares)), 1e-12f);
        float factor = role == 0 ? temperature[h] / length : role == 1 ? 1 / length : 1;
        for (int v = 0; v < PV; v++) store(out, to + v * V, half, x[v] * factor);
    }
}

void mvar_heads(const void *qkv, const float *temperature, void *out, long B, long L, long H, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long token = 0; token < B * L; token++) {
        if (half) heads(qkv, temperature, out, B, L, H, token, 1);
        else heads(qkv, temperature, out, B, L, H, token, 0);
    }
}

/* GELU by its tanh approximation, in place: x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE void gelu(void *tokens, long i, int half) {
    vec x = load(tokens, i, half);
    store(tokens, i, half, x / (1.0f + exp_(x * (-1.5957691216f - 0.0713548163f * x * x))));
}

void mvar_gelu(void *tokens, long count, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < count; i += V) {
        if (half) gelu(tokens, i, 1);
        else gelu(tokens, i, 0);
    }
}
