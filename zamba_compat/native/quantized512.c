/* quantized.c's product of a matrix of 4 bits and a vector with AVX-512: one instruction looks up 16 numbers.
 *
 * Written for x86-64: elsewhere zamba_compat_wide() is 0 and nothing else here may be called.
 */
#include "quantized.h"

#if !defined(__x86_64__)
EXPORT int zamba_compat_wide(void) { return 0; }
#else
EXPORT int zamba_compat_wide(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

#define AVX512 __attribute__((target("avx512f,avx512bw,avx2,fma")))
#define LANES 16
#define WHOLE (2 * CHUNK) /* weights in 64 bytes */
#define NIBBLES 8         /* of 32 bits, each of a vector of its own */
#define FAR 4096          /* bytes */

/* x as `some_rows` meets it: of each 64 bytes, and of the last 32 if columns is an odd number of chunks, the lowest
 * nibbles of every 32 bits, then the next. Of a byte the high nibble is the even column. */
void zamba_compat_arranged_512(size_t columns, const float *wide, const bfloat16 *narrow, float *room) {
    for (size_t start = 0; start < columns; start += WHOLE) {
        size_t lanes = least(columns - start, WHOLE) / NIBBLES;
        for (size_t nibble = 0; nibble < NIBBLES; nibble++)
            for (size_t lane = 0; lane < lanes; lane++) {
                size_t column = start + lane * NIBBLES + (nibble ^ 1);
                *room++ = wide ? wide[column] : widened(narrow[column]);
            }
    }
}

/* `rows` of them at once: 1, or TOGETHER. */
AVX512 INLINE void some_rows(const Quantized *matrix, const float *x, size_t first, size_t rows, float *y) {
    const __m512 code = _mm512_loadu_ps(matrix->code);
    size_t stride = matrix->columns / 2, chunks = matrix->columns / CHUNK;
    __m512 sums[TOGETHER];
    float scales[TOGETHER][SEGMENT + 1];
    for (size_t row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
    for (size_t begin = 0; begin < chunks; begin += SEGMENT) {
        size_t count = least(chunks - begin, SEGMENT);
        const uint8_t *bytes = matrix->data + first * stride + begin * (CHUNK / 2);
        for (size_t row = 0; row < rows; row++) {
            chunk_scales(matrix, first + row, begin, count, scales[row]);
            scales[row][count] = 0;
        }
        for (size_t chunk = 0; chunk < count; chunk += 2, bytes += CHUNK) {
            int half = chunk + 1 == count;
            __mmask16 there = half ? 0x00ff : 0xffff;
            size_t lanes = half ? LANES / 2 : LANES;
            __m512i codes[TOGETHER];
            __m512 parts[TOGETHER];
            for (size_t row = 0; row < rows; row++) {
                _mm_prefetch((const char *)bytes + row * stride + FAR, _MM_HINT_T0);
                codes[row] = _mm512_maskz_loadu_epi32(there, bytes + row * stride);
                parts[row] = _mm512_setzero_ps();
            }
            for (size_t nibble = 0; nibble < NIBBLES; nibble++, x += lanes) {
                __m512 some = _mm512_maskz_loadu_ps(there, x);
                for (size_t row = 0; row < rows; row++) {
                    parts[row] = _mm512_fmadd_ps(_mm512_permutexvar_ps(codes[row], code), some, parts[row]);
                    codes[row] = _mm512_srli_epi32(codes[row], 4);
                }
            }
            for (size_t row = 0; row < rows; row++) {
                const float *at = scales[row] + chunk;
                __m512 scale = _mm512_mask_broadcastss_ps(_mm512_set1_ps(at[0]), 0xff00, _mm_load_ss(at + 1));
                sums[row] = _mm512_fmadd_ps(parts[row], scale, sums[row]);
            }
        }
    }
    for (size_t row = 0; row < rows; row++) y[row] = _mm512_reduce_add_ps(sums[row]);
}

AVX512 void zamba_compat_multiplied_512(const Quantized *matrix, const float *x, size_t first, size_t last,
                                        int together, float *y, bfloat16 *out) {
    for (size_t row = first, rows; row < last; row += rows) {
        float some[TOGETHER];
        rows = together && row + TOGETHER <= last ? TOGETHER : 1;
        if (rows == TOGETHER)
            some_rows(matrix, x, row, TOGETHER, some);
        else
            some_rows(matrix, x, row, 1, some);
        for (size_t k = 0; k < rows; k++) {
            if (y)
                y[row + k] = some[k];
            else
                out[row + k] = rounded(some[k]);
        }
    }
}
#endif
