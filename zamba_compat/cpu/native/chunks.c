/* A sequence through a Mamba2 mixer as scan.c has it, but 64 tokens of a head at a time, as products of matrices of
 * bfloat16: with the tile instructions of AMX, or with those of AVX512-BF16.
 *
 * With E_i = a_0 ... a_i of a chunk, and L_ij = a_j+1 ... a_i dt_j where j <= i (Dao and Gu, "Transformers are SSMs",
 * 2024, section 6):
 *
 *     y_i = E_i C_i S + sum over j of (C_i B_j) L_ij x_j + D x_i        S becomes E_63 S + sum over j of B_j L_63,j x_j
 *
 * What is multiplied is rounded to bfloat16, as in the kernels for GPUs: B, C, x, S, (C B) L and L x. Sums are float32,
 * and so is the state that goes on. A NaN or an infinity among a token's x spoils its whole chunk: zero times it is
 * NaN.
 *
 * Loaded as kernels.c is. Where zamba_compat_chunks_kind() is 0 zamba_compat_chunks() may not be called, and likewise
 * zamba_compat_vectors().
 */
#include "tiles.h"

#ifndef HAS_TILES
EXPORT int zamba_compat_chunks_kind(void) { return 0; }
EXPORT int zamba_compat_vectors_kind(void) { return 0; }
#else
#include "chunk.h"

#include <math.h>

EXPORT int zamba_compat_tiles_kind(void);
EXPORT int zamba_compat_chunks_kind(void) { return zamba_compat_tiles_kind(); }
EXPORT int zamba_compat_vectors_kind(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

/* B and C of 32 channels each, zeros where there are no tokens. */
AVX512 static void some_bc(void *given, size_t first, size_t last) {
    const Job *job = given;
    size_t width = width_of(job->mixer), all = (job->tokens + CHUNK - 1) / CHUNK * CHUNK;
    for (size_t i = first * BOTH; i < last * BOTH; i += BOTH) {
        Convolution of = convolution(job, inner_of(job->mixer) + i, BOTH);
        bfloat16 *to = job->bc + i;
        for (size_t token = 0; token < all; token++, to += width)
            _mm512_storeu_si512(to, token < job->tokens ? rounded_lanes(convolved(&of)) : _mm512_setzero_si512());
    }
}

/* sums [32, 32], rows `stride` numbers apart, become left [32, 32 * steps] times right [16 * steps pairs, 32, 2],
 * or that is added to them. */
AVX512 static void by_tiles(float *sums, size_t stride, Tiles left, Tiles right, size_t steps, int add) {
    const char *upper = left.at, *lower = upper + TILE * left.stride, *from = right.at;
    opened(sums, stride, TILE, TILE * stride, add);
    for (size_t step = 0; step < steps; step++, upper += 64, lower += 64, from += TILE * right.stride) {
        _tile_loadd(4, upper, left.stride);
        _tile_loadd(6, from, right.stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, from + 64, right.stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower, left.stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    closed(sums, stride, TILE, TILE * stride);
}

#define ROWS 8 /* that are summed together */

/* The same without tiles. */
AVX512 static void by_vectors(float *sums, size_t stride, Tiles left, Tiles right, size_t steps, int add) {
    for (size_t row = 0; row < BOTH; row += ROWS, sums += ROWS * stride) {
        const char *from = (const char *)left.at + row * left.stride, *pairs = right.at;
        Lanes some[ROWS];
        for (size_t k = 0; k < ROWS; k++)
            some[k] = add ? numbers(sums + k * stride) : (Lanes){_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (size_t pair = 0; pair < TILE * steps; pair++, from += 4, pairs += right.stride) {
            __m512bh low = (__m512bh)_mm512_loadu_si512(pairs), high = (__m512bh)_mm512_loadu_si512(pairs + 64);
            for (size_t k = 0; k < ROWS; k++) {
                int both;
                memcpy(&both, from + k * left.stride, 4);
                __m512bh by = (__m512bh)_mm512_set1_epi32(both);
                some[k].low = _mm512_dpbf16_ps(some[k].low, by, low);
                some[k].high = _mm512_dpbf16_ps(some[k].high, by, high);
            }
        }
        for (size_t k = 0; k < ROWS; k++) {
            _mm512_storeu_ps(sums + k * stride, some[k].low);
            _mm512_storeu_ps(sums + k * stride + TILE, some[k].high);
        }
    }
}

/* Of each chunk and group C times B, where a token of B is not behind that of C; and B turned. */
AVX512 static void some_products(void *given, size_t first, size_t last) {
    const Job *job = given;
    size_t groups = job->mixer->groups, d_state = job->mixer->d_state, width = width_of(job->mixer);
    _Alignas(64) bfloat16 pairs[MOST_STATE * CHUNK]; /* [d_state / 2, CHUNK, 2] */
    if (job->multiplied == by_tiles) begin();
    for (size_t i = first; i < last; i++) {
        const bfloat16 *B = job->bc + i / groups * CHUNK * width + i % groups * d_state, *C = B + groups * d_state;
        bfloat16 *turned = job->turned + i * d_state * CHUNK;
        for (size_t n = 0; n < d_state; n += BOTH)
            for (size_t token = 0; token < CHUNK; token += TILE) {
                __m512i lines[TILE];
                for (size_t k = 0; k < TILE; k++) lines[k] = _mm512_loadu_si512(B + (token + k) * width + n);
                transposed(lines);
                for (size_t k = 0; k < TILE; k++) {
                    bfloat16 *to = turned + (n + 2 * k) * CHUNK + token;
                    _mm512_store_si512(pairs + ((n / 2 + k) * CHUNK + token) * 2, lines[k]);
                    _mm256_store_si256((__m256i *)to, _mm512_cvtepi32_epi16(lines[k]));
                    __m512i odd = _mm512_srli_epi32(lines[k], 16);
                    _mm256_store_si256((__m256i *)(to + CHUNK), _mm512_cvtepi32_epi16(odd));
                }
            }
        float *products = job->products + i * CHUNK * CHUNK;
        for (size_t row = 0; row < CHUNK; row += BOTH)
            for (size_t column = 0; column <= row; column += BOTH)
                job->multiplied(products + row * CHUNK + column, CHUNK, (Tiles){C + row * width, 2 * width},
                                (Tiles){pairs + 2 * column, 4 * CHUNK}, d_state / BOTH, 0);
    }
    if (job->multiplied == by_tiles) _tile_release();
}

/* A state [rows, columns] as [columns, rows]. */
AVX512 static void turned_state(const float *from, size_t rows, size_t columns, float *to) {
    for (size_t row = 0; row < rows; row += TILE)
        for (size_t column = 0; column < columns; column += TILE) {
            __m512i lines[TILE];
            for (size_t k = 0; k < TILE; k++) lines[k] = _mm512_loadu_si512(from + (row + k) * columns + column);
            transposed(lines);
            for (size_t k = 0; k < TILE; k++) _mm512_storeu_si512(to + (column + k) * rows + row, lines[k]);
        }
}

AVX512 static void some_heads(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Mixer *mixer = job->mixer;
    size_t head_dim = mixer->head_dim, d_state = mixer->d_state, groups = mixer->groups, width = width_of(mixer);
    _Alignas(64) Room room;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* what decays below 2^-126 is zero: computing with it takes 100 times as long */
    if (job->multiplied == by_tiles) begin();
    for (size_t head = first; head < last; head++) {
        size_t place = head * head_dim * d_state, group = head / (mixer->heads / groups);
        float *kept = job->sequence->state + place, *state = job->states + place;
        if (job->first == 0 && job->sequence->goes_on)
            turned_state(kept, head_dim, d_state, state);
        else if (job->first == 0)
            memset(state, 0, head_dim * d_state * sizeof *state);
        Convolution of[MOST_ROWS / BOTH];
        for (size_t row = 0; row < head_dim; row += BOTH)
            of[row / BOTH] = convolution(job, head * head_dim + row, head_dim);
        for (size_t done = 0; done < job->tokens; done += CHUNK) {
            size_t number = done / CHUNK * groups + group, tokens = least(CHUNK, job->tokens - done);
            const bfloat16 *C = job->bc + done * width + (groups + group) * d_state;
            weighed(job, head, done, job->products + number * CHUNK * CHUNK, &room);
            x_of(job, tokens, of, &room);
            decayed(mixer, state, &room);
            for (size_t column = 0; column < head_dim; column += BOTH) {
                Tiles pairs = {room.pairs + 2 * column, 4 * head_dim}, past = {room.state + 2 * column, 4 * head_dim};
                for (size_t row = 0; row < CHUNK; row += BOTH) {
                    size_t to = row * head_dim + column;
                    Tiles some = {C + row * width, 2 * width};
                    job->multiplied(room.past + to, head_dim, some, past, d_state / BOTH, 0);
                    Tiles factors = {room.factors + row * CHUNK, 2 * CHUNK};
                    job->multiplied(room.y + to, head_dim, factors, pairs, row / BOTH + 1, 0);
                }
                for (size_t n = 0; n < d_state; n += BOTH)
                    job->multiplied(state + n * head_dim + column, head_dim,
                                    (Tiles){job->turned + (number * d_state + n) * CHUNK, 2 * CHUNK},
                                    (Tiles){room.weighed + 2 * column, 4 * head_dim}, CHUNK / BOTH, 1);
            }
            WRITTEN;
            gated(job, head, done, tokens, &room);
        }
        if (job->first + job->tokens == job->sequence->tokens) turned_state(state, d_state, head_dim, kept);
    }
    if (job->multiplied == by_tiles) _tile_release();
    _mm_setcsr(before);
}

AVX512 static void some_normed(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Mixer *mixer = job->mixer;
    size_t inner = inner_of(mixer), size = mixer->norm_group;
    for (size_t token = first; token < last; token++)
        for (size_t start = 0; start < inner; start += size) {
            const float *y = job->y + token * inner + start;
            bfloat16 *to = (bfloat16 *)job->sequence->out + (job->first + token) * inner + start;
            __m512 squares = _mm512_setzero_ps();
            for (size_t i = 0; i < size; i += TILE) {
                __m512 value = _mm512_loadu_ps(y + i);
                squares = _mm512_fmadd_ps(value, value, squares);
            }
            float mean = _mm512_reduce_add_ps(squares) / (float)size;
            __m512 scale = _mm512_set1_ps(1.0f / sqrtf(mean + mixer->epsilon));
            for (size_t i = 0; i < size; i += BOTH) {
                Lanes value = numbers(y + i), norm = numbers(mixer->norm + start + i);
                value.low = _mm512_mul_ps(_mm512_mul_ps(value.low, scale), norm.low);
                value.high = _mm512_mul_ps(_mm512_mul_ps(value.high, scale), norm.high);
                _mm512_storeu_si512(to + i, rounded_lanes(value));
            }
        }
}

/* How many numbers of float32 `room` is for. */
EXPORT size_t zamba_compat_chunks_room(const Mixer *mixer) {
    size_t chunks = CHUNKS * mixer->groups;
    return TOKENS * inner_of(mixer) + mixer->d_state * inner_of(mixer) + chunks * CHUNK * CHUNK +
           TOKENS * width_of(mixer) / 2 + chunks * mixer->d_state * CHUNK / 2;
}

EXPORT size_t zamba_compat_vectors_room(const Mixer *mixer) { return zamba_compat_chunks_room(mixer); }

static void run(const Team *team, const Mixer *mixer, const Sequence *sequence, Multiplied multiplied) {
    for (size_t first = 0; first < sequence->tokens; first += TOKENS) {
        Job job = {.mixer = mixer, .sequence = sequence, .multiplied = multiplied, .first = first};
        size_t chunks = CHUNKS * mixer->groups;
        job.y = sequence->room;
        job.tokens = least(TOKENS, sequence->tokens - first);
        job.states = job.y + TOKENS * inner_of(mixer);
        job.products = job.states + mixer->d_state * inner_of(mixer);
        job.bc = (bfloat16 *)(job.products + chunks * CHUNK * CHUNK);
        job.turned = job.bc + TOKENS * width_of(mixer);
        spread(team, some_bc, &job, width_of(mixer) / BOTH);
        spread(team, some_products, &job, (job.tokens + CHUNK - 1) / CHUNK * mixer->groups);
        spread(team, some_heads, &job, mixer->heads);
        spread(team, some_normed, &job, job.tokens);
    }
}

/* Narrow sequences of mixers whose taps are 4; head_dim is 32 or 64, d_state and norm_group are multiples of 32. room
 * begins at a multiple of 64 bytes. */
EXPORT void zamba_compat_chunks(const Team *team, const Mixer *mixer, const Sequence *sequence) {
    run(team, mixer, sequence, by_tiles);
}

EXPORT void zamba_compat_vectors(const Team *team, const Mixer *mixer, const Sequence *sequence) {
    run(team, mixer, sequence, by_vectors);
}
#endif
