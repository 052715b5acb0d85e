/* One chunk of one head, as chunks.c has it: all but the products. */
#ifndef ZAMBA_COMPAT_CHUNK_H
#define ZAMBA_COMPAT_CHUNK_H

#include "lanes.h"
#include "scan.h"

#define CHUNK 64 /* tokens */
#define CHUNKS 2 /* at a time */
#define TOKENS (CHUNKS * CHUNK)
#define TAPS 4 /* of a convolution */
#define MOST_ROWS 64 /* of a head */

/* Rows of bfloat16, so many bytes apart. */
typedef struct {
    const void *at;
    size_t stride;
} Tiles;

typedef void (*Multiplied)(float *sums, size_t stride, Tiles left, Tiles right, size_t steps, int add);

typedef struct {
    const Mixer *mixer;
    const Sequence *sequence;
    Multiplied multiplied;
    size_t first, tokens; /* of this time */
    float *y;             /* [TOKENS, inner] */
    float *states;        /* [heads, d_state, head_dim] */
    float *products;      /* [CHUNKS, groups, CHUNK, CHUNK] of C and B */
    bfloat16 *bc;         /* [TOKENS, 2 * groups * d_state] */
    bfloat16 *turned;     /* [CHUNKS, groups, d_state, CHUNK] of B */
} Job;

/* The convolution of 32 channels, token by token. */
typedef struct {
    Lanes kernel[TAPS], bias, past[TAPS - 1];
    const bfloat16 *next;
    size_t stride, ahead; /* of the channels that are asked for meanwhile */
} Convolution;

AVX512 static Convolution convolution(const Job *job, size_t channel, size_t ahead) {
    const Mixer *mixer = job->mixer;
    const Sequence *given = job->sequence;
    size_t channels = inner_of(mixer) + width_of(mixer);
    Convolution made = {.stride = given->xbc_stride, .ahead = ahead};
    made.bias = (Lanes){_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (mixer->bias) made.bias = numbers(mixer->bias + channel);
    for (size_t k = 0; k < TAPS; k++) made.kernel[k] = numbers(mixer->kernel + k * channels + channel);
    made.next = (const bfloat16 *)given->xbc + job->first * given->xbc_stride + channel;
    for (size_t k = 0; k < TAPS - 1; k++) {
        bfloat16 found[BOTH] = {0};
        if (job->first >= TAPS - 1)
            memcpy(found, made.next - (TAPS - 1 - k) * given->xbc_stride, sizeof found);
        else if (given->earlier) /* the oldest of it is out of reach */
            for (size_t lane = 0; lane < BOTH; lane++)
                found[lane] = ((const bfloat16 *)given->earlier)[(channel + lane) * TAPS + k + 1];
        made.past[k] = widened_lanes(found);
    }
    return made;
}

AVX512 INLINE Lanes convolved(Convolution *of) {
    Lanes now = widened_lanes(of->next), sum = of->bias;
    _mm_prefetch((const char *)(of->next + of->ahead), _MM_HINT_T0);
    for (size_t k = 0; k < TAPS; k++) {
        Lanes from = k < TAPS - 1 ? of->past[k] : now;
        sum.low = _mm512_fmadd_ps(from.low, of->kernel[k].low, sum.low);
        sum.high = _mm512_fmadd_ps(from.high, of->kernel[k].high, sum.high);
        if (k < TAPS - 1) of->past[k] = k < TAPS - 2 ? of->past[k + 1] : now;
    }
    of->next += of->stride;
    return activated(sum);
}

/* Of a head and a chunk. */
typedef struct {
    float decays[CHUNK], dts[CHUNK];        /* a, dt */
    float since[CHUNK], until[CHUNK];       /* E, and L of the last token */
    bfloat16 factors[CHUNK * CHUNK];        /* (C B) L */
    float x[CHUNK * MOST_ROWS];             /* [CHUNK, head_dim] */
    bfloat16 pairs[CHUNK * MOST_ROWS];      /* of x: [CHUNK / 2, head_dim, 2] */
    bfloat16 weighed[CHUNK * MOST_ROWS];    /* of L x, the same */
    bfloat16 state[MOST_STATE * MOST_ROWS]; /* [d_state / 2, head_dim, 2] */
    float y[CHUNK * MOST_ROWS];             /* [CHUNK, head_dim], of this chunk's tokens */
    float past[CHUNK * MOST_ROWS];          /* the same of the state before it, without E */
} Room;

/* E, L, and that times C B. */
AVX512 static void weighed(const Job *job, size_t head, size_t done, const float *products, Room *room) {
    const Sequence *given = job->sequence;
    size_t tokens = least(CHUNK, job->tokens - done);
    const float *dt = given->dt + (job->first + done) * given->dt_stride + head;
    for (size_t i = 0; i < CHUNK; i++) room->dts[i] = i < tokens ? dt[i * given->dt_stride] : 0;
    for (size_t i = 0; i < CHUNK; i += TILE) {
        __m512 power = _mm512_mul_ps(_mm512_load_ps(room->dts + i), _mm512_set1_ps(job->mixer->A[head]));
        _mm512_store_ps(room->decays + i, exponential(power));
    }
    float since = 1;
    __m512 rows[CHUNK / TILE];
    for (size_t k = 0; k < CHUNK / TILE; k++) rows[k] = _mm512_setzero_ps();
    for (size_t i = 0; i < CHUNK; i++) {
        since *= room->decays[i];
        room->since[i] = since;
        __m512 decay = _mm512_set1_ps(room->decays[i]), dt_i = _mm512_set1_ps(room->dts[i]);
        for (size_t k = 0; k < CHUNK / TILE; k++)
            rows[k] = _mm512_mask_mov_ps(_mm512_mul_ps(rows[k], decay), i / TILE == k ? 1u << i % TILE : 0, dt_i);
        for (size_t k = 0; k < CHUNK / TILE; k += 2) {
            if (k * TILE > i) break;
            Lanes some = numbers(products + i * CHUNK + k * TILE);
            some.low = _mm512_mul_ps(some.low, rows[k]), some.high = _mm512_mul_ps(some.high, rows[k + 1]);
            _mm512_store_si512(room->factors + i * CHUNK + k * TILE, rounded_lanes(some));
        }
    }
    for (size_t k = 0; k < CHUNK / TILE; k++) _mm512_store_ps(room->until + k * TILE, rows[k]);
}

/* x, in three ways. */
AVX512 static void x_of(const Job *job, size_t tokens, Convolution *of, Room *room) {
    size_t head_dim = job->mixer->head_dim;
    for (size_t row = 0; row < head_dim; row += BOTH, of++) {
        Convolution here = *of; /* in registers: what is stored could be this for all that the compiler knows */
        for (size_t i = 0; i < CHUNK; i += 2) {
            Lanes x[2];
            for (size_t k = 0; k < 2; k++) {
                x[k] = (Lanes){_mm512_setzero_ps(), _mm512_setzero_ps()};
                if (i + k < tokens) x[k] = convolved(&here);
                _mm512_store_ps(room->x + (i + k) * head_dim + row, x[k].low);
                _mm512_store_ps(room->x + (i + k) * head_dim + row + TILE, x[k].high);
            }
            size_t to = i * head_dim + 2 * row;
            _mm512_store_si512(room->pairs + to, rounded_pairs(x[0].low, x[1].low));
            _mm512_store_si512(room->pairs + to + BOTH, rounded_pairs(x[0].high, x[1].high));
            __m512 first = _mm512_set1_ps(room->until[i]), second = _mm512_set1_ps(room->until[i + 1]);
            __m512 low = _mm512_mul_ps(x[0].low, first), next = _mm512_mul_ps(x[1].low, second);
            _mm512_store_si512(room->weighed + to, rounded_pairs(low, next));
            low = _mm512_mul_ps(x[0].high, first), next = _mm512_mul_ps(x[1].high, second);
            _mm512_store_si512(room->weighed + to + BOTH, rounded_pairs(low, next));
        }
        *of = here;
    }
}

/* The state rounded, and what is left of it after the chunk. */
AVX512 static void decayed(const Mixer *mixer, float *state, Room *room) {
    size_t head_dim = mixer->head_dim;
    __m512 decay = _mm512_set1_ps(room->since[CHUNK - 1]);
    for (size_t n = 0; n < mixer->d_state; n += 2, state += 2 * head_dim)
        for (size_t row = 0; row < head_dim; row += TILE) {
            __m512 first = _mm512_load_ps(state + row), second = _mm512_load_ps(state + head_dim + row);
            _mm512_store_si512(room->state + n * head_dim + 2 * row, rounded_pairs(first, second));
            _mm512_store_ps(state + row, _mm512_mul_ps(first, decay));
            _mm512_store_ps(state + head_dim + row, _mm512_mul_ps(second, decay));
        }
}

/* y of some tokens, with D x, gated. */
AVX512 static void gated(const Job *job, size_t head, size_t done, size_t tokens, const Room *room) {
    const Mixer *mixer = job->mixer;
    const Sequence *given = job->sequence;
    size_t head_dim = mixer->head_dim, inner = inner_of(mixer);
    const bfloat16 *gate = (const bfloat16 *)given->gate + (job->first + done) * given->gate_stride + head * head_dim;
    float *to = job->y + done * inner + head * head_dim;
    __m512 D = _mm512_set1_ps(mixer->D[head]);
    for (size_t i = 0; i < tokens; i++, gate += given->gate_stride, to += inner) {
        __m512 since = _mm512_set1_ps(room->since[i]);
        for (size_t row = 0; row < head_dim; row += BOTH) {
            Lanes by = activated(widened_lanes(gate + row));
            _mm_prefetch((const char *)(gate + head_dim + row), _MM_HINT_T0);
            for (size_t k = 0; k < 2; k++) {
                size_t at = i * head_dim + row + k * TILE;
                __m512 y = _mm512_fmadd_ps(since, _mm512_load_ps(room->past + at), _mm512_load_ps(room->y + at));
                y = _mm512_fmadd_ps(D, _mm512_load_ps(room->x + at), y);
                _mm512_storeu_ps(to + row + k * TILE, _mm512_mul_ps(y, k ? by.high : by.low));
            }
        }
    }
}

#endif
