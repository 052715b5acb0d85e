/* A bfloat16 matrix times a vector. */
#ifndef ZAMBA_COMPAT_ROWS_H
#define ZAMBA_COMPAT_ROWS_H

#include "bfloat16.h"
#include "team.h"

typedef struct {
    const bfloat16 *data; /* [rows, columns] */
    size_t stride, rows, columns;
} Matrix;

#if defined(__x86_64__)
#include "avx2.h"

#define PAIRS 16 /* weights that are widened together, as halves() gives them */
#define STEP (2 * PAIRS)

AVX2 INLINE void added_pairs(const bfloat16 *weights, const float *x, __m256 *sums) {
    __m256 even, odd;
    halves(weights, &even, &odd);
    sums[0] = _mm256_fmadd_ps(even, _mm256_loadu_ps(x), sums[0]);
    sums[1] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(x + PAIRS / 2), sums[1]);
}

/* A row times x, which is in the order of `turned`. */
AVX2 INLINE float row_times(const bfloat16 *weights, const float *x, size_t columns) {
    size_t whole = columns / STEP * STEP;
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t i = 0; i < whole; i += STEP) {
        added_pairs(weights + i, x + i, sums);
        added_pairs(weights + i + PAIRS, x + i + PAIRS, sums + 2);
    }
    float y = total(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
    for (size_t i = whole; i < columns; i++) y += widened(weights[i]) * x[i];
    return y;
}

/* Threads share a matrix by groups of so many rows, the last one of fewer: how a row is summed depends on its number
 * alone, not on that of the threads. */
#define TOGETHER 4
#define AHEAD 2048 /* bytes that are asked for ahead of where each of them is read */

static inline size_t groups_of(size_t rows) { return (rows + TOGETHER - 1) / TOGETHER; }

/* At `done` bytes of a row: behind its end comes the row that follows TOGETHER further on. */
INLINE void ask_ahead(const void *at, size_t done, size_t stride) {
    _mm_prefetch((const char *)at + AHEAD + (done + AHEAD < stride ? 0 : (TOGETHER - 1) * stride), _MM_HINT_T0);
}

/* TOGETHER rows times x, as `row_times` but for the order of sums. */
AVX2 INLINE void rows_times(const bfloat16 *weights, size_t stride, const float *x, size_t columns, float *y) {
    size_t whole = columns / STEP * STEP;
    __m256 sums[TOGETHER][2];
    for (size_t row = 0; row < TOGETHER; row++) sums[row][0] = sums[row][1] = _mm256_setzero_ps();
    for (size_t i = 0; i < whole; i += STEP)
        for (size_t row = 0; row < TOGETHER; row++) {
            const bfloat16 *at = weights + row * stride + i;
            ask_ahead(at, i * sizeof *at, stride * sizeof *at);
            added_pairs(at, x + i, sums[row]);
            added_pairs(at + PAIRS, x + i + PAIRS, sums[row]);
        }
    for (size_t row = 0; row < TOGETHER; row++) {
        y[row] = total(_mm256_add_ps(sums[row][0], sums[row][1]));
        for (size_t i = whole; i < columns; i++) y[row] += widened(weights[row * stride + i]) * x[i];
    }
}

/* x in float32, the even ones of each PAIRS first; what is left over of STEP stays in order. */
INLINE void turned(const bfloat16 *x, size_t columns, float *out) {
    size_t whole = columns / STEP * STEP;
    for (size_t i = 0; i < whole; i += PAIRS)
        for (size_t k = 0; k < PAIRS / 2; k++) {
            out[i + k] = widened(x[i + 2 * k]);
            out[i + PAIRS / 2 + k] = widened(x[i + 2 * k + 1]);
        }
    for (size_t i = whole; i < columns; i++) out[i] = widened(x[i]);
}
#endif

/* y [rows] of x [columns], summed in float32. room: [columns]. x86-64 with AVX2. */
EXPORT void zamba_compat_rows(const Team *team, const Matrix *matrix, const bfloat16 *x, float *room, bfloat16 *y);

/* The same of a matrix of 4 bits, as quantized.c knows it. */
typedef struct Quantized Quantized;
EXPORT void zamba_compat_quantized_tokens(const Team *team, const Quantized *matrix, size_t tokens, const bfloat16 *x,
                                          float *room, bfloat16 *y);

#endif
