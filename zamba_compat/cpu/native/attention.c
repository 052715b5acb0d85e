/* Attention of one token to those before it, in bfloat16.
 *
 * Loaded as kernels.c is. Written for x86-64 with AVX2: elsewhere zamba_compat_attention_kind() is 0 and nothing else
 * here may be called.
 */
#include "bfloat16.h"
#include "team.h"

#include <math.h>

#if !defined(__x86_64__)
EXPORT int zamba_compat_attention_kind(void) { return 0; }
#else
#include "avx2.h"

EXPORT int zamba_compat_attention_kind(void) { return has_avx2(); }

#define WIDTH 16   /* numbers of a head that are read together; head_dim is a multiple of it */
#define COLUMNS 64 /* numbers of the result that are summed at a time, in registers */
#define TOKENS 64  /* whose values are read for that from the nearest cache */

/* Strides in numbers; those of a head lie side by side. */
typedef struct {
    const bfloat16 *data;
    size_t row, head, token;
} Numbers;

typedef struct {
    size_t rows, heads, group, head_dim, tokens;
    Numbers query, key, value; /* [rows, heads, tokens, head_dim], of the query one token; `group` heads share a key's */
    const float *mask;         /* [rows, tokens], added to the scores, or null */
    float scale;
    float *room;   /* [rows * heads, tokens + 2 * head_dim] */
    bfloat16 *out; /* [rows, heads, head_dim] */
} Attention;

/* The query's numbers times a key's. query: as halves() gives them. */
AVX2 INLINE float product(const float *query, const bfloat16 *key, size_t head_dim) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, even, odd;
    for (size_t i = 0; i < head_dim; i += WIDTH) {
        halves(key + i, &even, &odd);
        sums[0] = _mm256_fmadd_ps(even, _mm256_loadu_ps(query + i), sums[0]);
        sums[1] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(query + i + 8), sums[1]);
    }
    return total(_mm256_add_ps(sums[0], sums[1]));
}

/* Some columns of the values' sum, weighted, onto `sum`, which is as halves() gives numbers. */
AVX2 INLINE void summed(const float *weights, Numbers values, size_t tokens, size_t columns, float *sum) {
    __m256 sums[COLUMNS / 8], even, odd;
    for (size_t i = 0; i < columns / 8; i++) sums[i] = _mm256_loadu_ps(sum + 8 * i);
    for (size_t token = 0; token < tokens; token++) {
        __m256 weight = _mm256_set1_ps(weights[token]);
        const bfloat16 *from = values.data + token * values.token;
        for (size_t i = 0; i < columns / WIDTH; i++) {
            halves(from + WIDTH * i, &even, &odd);
            sums[2 * i] = _mm256_fmadd_ps(even, weight, sums[2 * i]);
            sums[2 * i + 1] = _mm256_fmadd_ps(odd, weight, sums[2 * i + 1]);
        }
    }
    for (size_t i = 0; i < columns / 8; i++) _mm256_storeu_ps(sum + 8 * i, sums[i]);
}

AVX2 static void some_heads(void *given, size_t first, size_t last) {
    const Attention *job = given;
    size_t tokens = job->tokens, head_dim = job->head_dim;
    for (size_t number = first; number < last; number++) {
        size_t row = number / job->heads, head = number % job->heads;
        const bfloat16 *query = job->query.data + row * job->query.row + head * job->query.head;
        const bfloat16 *key = job->key.data + row * job->key.row + head / job->group * job->key.head;
        Numbers values = job->value;
        values.data += row * values.row + head / job->group * values.head;
        float *weights = job->room + number * (tokens + 2 * head_dim), *wide = weights + tokens, *sum = wide + head_dim;
        for (size_t i = 0; i < head_dim; i += WIDTH) {
            __m256 even, odd;
            halves(query + i, &even, &odd);
            _mm256_storeu_ps(wide + i, even);
            _mm256_storeu_ps(wide + i + 8, odd);
        }
        float largest = -INFINITY, whole = 0;
        for (size_t token = 0; token < tokens; token++) {
            weights[token] = product(wide, key + token * job->key.token, head_dim) * job->scale;
            if (job->mask) weights[token] += job->mask[row * tokens + token];
            largest = weights[token] > largest ? weights[token] : largest;
        }
        for (size_t token = 0; token < tokens; token++) whole += weights[token] = expf(weights[token] - largest);
        for (size_t i = 0; i < head_dim; i++) sum[i] = 0;
        for (size_t token = 0; token < tokens; token += TOKENS) {
            size_t count = tokens - token < TOKENS ? tokens - token : TOKENS, column = 0;
            Numbers some = values;
            some.data += token * values.token;
            for (; column + COLUMNS <= head_dim; column += COLUMNS, some.data += COLUMNS)
                summed(weights + token, some, count, COLUMNS, sum + column);
            for (; column < head_dim; column += WIDTH, some.data += WIDTH)
                summed(weights + token, some, count, WIDTH, sum + column);
        }
        for (size_t i = 0; i < head_dim; i++)
            job->out[number * head_dim + i] = rounded(sum[i / WIDTH * WIDTH + i % WIDTH / 2 + i % 2 * 8] / whole);
    }
}

EXPORT void zamba_compat_attention(const Team *team, const Attention *job) {
    spread(team, some_heads, (void *)job, job->rows * job->heads);
}
#endif
