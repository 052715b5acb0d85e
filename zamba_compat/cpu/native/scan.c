/* A sequence through a Mamba2 mixer: everything between its projections.
 *
 * Token by token, as the recurrence has it, while 16 rows of a head's state stay in the nearest cache; PyTorch's
 * operations want it as products of matrices, chunk by chunk, with ten passes over what they make on the way. With
 * AVX-512 it took as long.
 *
 * Loaded as kernels.c is. Written for x86-64 with AVX2: elsewhere zamba_compat_scan_kind() is 0 and nothing else here
 * may be called.
 */
#include "scan.h"

#if !defined(__x86_64__)
EXPORT int zamba_compat_scan_kind(void) { return 0; }
#else
#include "avx2.h"

#include <math.h>

EXPORT int zamba_compat_scan_kind(void) { return has_avx2(); }

#define LANES 16     /* channels, or rows of a state, that are computed together */
#define TOKENS 128   /* at a time */
#define MOST_TAPS 8

typedef struct {
    const Mixer *mixer;
    const Sequence *sequence;
    size_t first, tokens; /* of this time */
} Job;

typedef struct {
    __m256 low, high;
} Lanes;

AVX2 INLINE Lanes loaded(const float *from) { return (Lanes){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
AVX2 INLINE void stored(float *to, Lanes x) { _mm256_storeu_ps(to, x.low), _mm256_storeu_ps(to + 8, x.high); }
AVX2 INLINE Lanes every(float x) { return (Lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
AVX2 INLINE Lanes times(Lanes a, Lanes b) {
    return (Lanes){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
AVX2 INLINE Lanes plus(Lanes a, Lanes b, Lanes c) {
    return (Lanes){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

AVX2 INLINE __m256 widened_eight(__m128i from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(from), 16));
}

/* Some numbers from the i-th on, zeros behind them. */
AVX2 INLINE Lanes numbers(const void *from, size_t i, size_t some, int64_t narrow) {
    const float *wide = (const float *)from + i;
    const bfloat16 *at = (const bfloat16 *)from + i;
    if (some >= LANES && !narrow) return loaded(wide);
    if (some >= LANES)
        return (Lanes){widened_eight(_mm_loadu_si128((const __m128i *)at)),
                       widened_eight(_mm_loadu_si128((const __m128i *)(at + 8)))};
    float found[LANES] = {0};
    for (size_t lane = 0; lane < some; lane++) found[lane] = narrow ? widened(at[lane]) : wide[lane];
    return loaded(found);
}

AVX2 INLINE void put(void *to, size_t i, Lanes x, size_t some, int64_t narrow) {
    float *wide = (float *)to + i;
    bfloat16 *at = (bfloat16 *)to + i;
    if (some >= LANES && !narrow) {
        stored(wide, x);
    } else if (some >= LANES) {
        __m256i both = _mm256_packus_epi32(rounded_eight(x.low), rounded_eight(x.high));
        _mm256_storeu_si256((__m256i *)at, _mm256_permute4x64_epi64(both, 0xd8));
    } else {
        float found[LANES];
        stored(found, x);
        for (size_t lane = 0; lane < some; lane++)
            if (narrow)
                at[lane] = rounded(found[lane]);
            else
                wide[lane] = found[lane];
    }
}

/* 2^n times the Taylor series of e^r, |r| <= log(2) / 2, to one unit in the last place; NaN stays. */
AVX2 INLINE __m256 exponential(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
    const int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), nearest);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x); /* log(2), to 15 bits and the rest */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), r);
    __m256 sum = _mm256_set1_ps(1.0f / 5040);
    const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (size_t k = 0; k < 7; k++) sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(factors[k]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}

AVX2 INLINE __m256 silu_eight(__m256 x) {
    __m256 below = exponential(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), below));
}

AVX2 INLINE Lanes silu(Lanes x) { return (Lanes){silu_eight(x.low), silu_eight(x.high)}; }

/* The convolution of some channels, activated: [tokens, stride]. */
AVX2 static void convolved(const Job *job, size_t channel, size_t some, float *to, size_t stride) {
    const Mixer *mixer = job->mixer;
    const Sequence *given = job->sequence;
    size_t taps = mixer->taps, before = taps - 1;
    size_t channels = inner_of(mixer) + width_of(mixer);
    float past[MOST_TAPS][LANES] = {{0}};
    for (size_t k = 0; given->earlier && k < before; k++) /* the oldest of `earlier` is out of reach */
        for (size_t lane = 0; lane < some; lane++) {
            size_t i = (channel + lane) * taps + k + 1;
            past[k][lane] =
                given->narrow ? widened(((const bfloat16 *)given->earlier)[i]) : ((const float *)given->earlier)[i];
        }
    Lanes weights[MOST_TAPS], bias = mixer->bias ? numbers(mixer->bias, channel, some, 0) : every(0);
    for (size_t k = 0; k < taps; k++) weights[k] = numbers(mixer->kernel, k * channels + channel, some, 0);
    for (size_t token = 0; token < job->tokens; token++, to += stride) {
        size_t at = job->first + token;
        Lanes sum = bias;
        for (size_t k = 0; k < taps; k++) {
            size_t place = (at + k - before) * given->xbc_stride + channel;
            sum = plus(at + k < before ? loaded(past[at + k]) : numbers(given->xbc, place, some, given->narrow),
                       weights[k], sum);
        }
        put(to, 0, silu(sum), some, 0);
    }
}

static inline float *bc_of(const Job *job, size_t group) { /* [tokens, 2 * groups * d_state] behind what becomes y */
    const Mixer *mixer = job->mixer;
    return job->sequence->room + TOKENS * inner_of(mixer) + group * mixer->d_state;
}

AVX2 static void some_bc(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Mixer *mixer = job->mixer;
    size_t inner = inner_of(mixer), width = width_of(mixer);
    for (size_t i = first * LANES; i < last * LANES; i += LANES)
        convolved(job, inner + i, least(LANES, width - i), bc_of(job, 0) + i, width);
}

/* What one head does to LANES rows: state [d_state, LANES] = state * decay + x * dt * B, and y [tokens, LANES] is that
 * times C. B and C are `width` numbers from token to token, decays and dts one, x LANES. */
typedef struct {
    const float *B, *C, *decays, *dts, *x;
    float *state, *y;
    size_t d_state, width, tokens;
} Rows;

AVX2 INLINE void two(const Rows *rows, size_t token, size_t tokens) {
    Lanes x[2], y[2];
    for (size_t k = 0; k < tokens; k++)
        x[k] = times(loaded(rows->x + (token + k) * LANES), every(rows->dts[token + k])), y[k] = every(0);
    const float *B = rows->B + token * rows->width, *C = rows->C + token * rows->width;
    float *state = rows->state;
    for (size_t n = 0; n < rows->d_state; n++, state += LANES) {
        Lanes value = loaded(state);
        for (size_t k = 0; k < tokens; k++) {
            value = plus(x[k], every(B[k * rows->width + n]), times(value, every(rows->decays[token + k])));
            y[k] = plus(value, every(C[k * rows->width + n]), y[k]);
        }
        stored(state, value);
    }
    for (size_t k = 0; k < tokens; k++) stored(rows->y + (token + k) * LANES, y[k]);
}

AVX2 static void stepped(const Rows *rows) {
    size_t token = 0;
    for (; token + 2 <= rows->tokens; token += 2) two(rows, token, 2);
    if (token < rows->tokens) two(rows, token, 1);
}

AVX2 static void some_heads(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Mixer *mixer = job->mixer;
    const Sequence *sequence = job->sequence;
    size_t d_state = mixer->d_state, inner = inner_of(mixer), width = width_of(mixer);
    float state[MOST_STATE * LANES] = {0}, x[TOKENS * LANES] = {0}, y[TOKENS * LANES], decays[TOKENS], dts[TOKENS];
    for (size_t head = first; head < last; head++) {
        const float *B = bc_of(job, head / (mixer->heads / mixer->groups)), *C = B + mixer->groups * d_state;
        for (size_t token = 0; token < job->tokens; token++) {
            dts[token] = sequence->dt[(job->first + token) * sequence->dt_stride + head];
            decays[token] = expf(dts[token] * mixer->A[head]);
        }
        Rows rows = {B, C, decays, dts, x, state, y, d_state, width, job->tokens};
        for (size_t done = 0; done < mixer->head_dim; done += LANES) {
            size_t row = head * mixer->head_dim + done, some = least(LANES, mixer->head_dim - done);
            float *kept = sequence->state + row * d_state;
            int empty = !sequence->goes_on && job->first == 0;
            for (size_t lane = 0; lane < some; lane++)
                for (size_t n = 0; n < d_state; n++) state[n * LANES + lane] = empty ? 0 : kept[lane * d_state + n];
            convolved(job, row, some, x, LANES);
            stepped(&rows);
            for (size_t token = 0; token < job->tokens; token++) {
                size_t at = (job->first + token) * sequence->gate_stride + row;
                Lanes whole = plus(loaded(x + token * LANES), every(mixer->D[head]), loaded(y + token * LANES));
                whole = times(whole, silu(numbers(sequence->gate, at, some, sequence->narrow)));
                put(sequence->room, token * inner + row, whole, some, 0);
            }
            for (size_t lane = 0; lane < some; lane++)
                for (size_t n = 0; n < d_state; n++) kept[lane * d_state + n] = state[n * LANES + lane];
        }
    }
}

AVX2 static void some_normed(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Mixer *mixer = job->mixer;
    const Sequence *sequence = job->sequence;
    size_t inner = inner_of(mixer);
    for (size_t token = first; token < last; token++)
        for (size_t start = 0; start < inner; start += mixer->norm_group) {
            const float *y = sequence->room + token * inner + start;
            size_t size = mixer->norm_group, to = (job->first + token) * inner + start;
            Lanes squares = every(0);
            for (size_t i = 0; i < size; i += LANES) {
                Lanes value = numbers(y, i, size - i, 0);
                squares = plus(value, value, squares);
            }
            float mean = total(_mm256_add_ps(squares.low, squares.high)) / (float)size;
            Lanes scale = every(1.0f / sqrtf(mean + mixer->epsilon));
            for (size_t i = 0; i < size; i += LANES) {
                Lanes value = times(numbers(y, i, size - i, 0), scale);
                value = times(value, numbers(mixer->norm, start + i, size - i, 0));
                put(sequence->out, to + i, value, size - i, sequence->narrow);
            }
        }
}

/* How many numbers `room` is for. */
EXPORT size_t zamba_compat_scan_room(const Mixer *mixer) {
    return TOKENS * (inner_of(mixer) + width_of(mixer));
}

EXPORT void zamba_compat_scan(const Team *team, const Mixer *mixer, const Sequence *sequence) {
    for (size_t first = 0; first < sequence->tokens; first += TOKENS) {
        Job job = {mixer, sequence, first, least(TOKENS, sequence->tokens - first)};
        spread(team, some_bc, &job, (width_of(mixer) + LANES - 1) / LANES);
        spread(team, some_heads, &job, mixer->heads);
        spread(team, some_normed, &job, job.tokens);
    }
}
#endif
