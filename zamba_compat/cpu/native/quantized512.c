/* What quantized.c does with AVX-512, several tokens at once too: one instruction looks up 16 numbers.
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
#define FAR 4096          /* bytes that are asked for ahead */
#define TOKENS 4          /* at once */

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

/* Some rows times some tokens of x at once. */
AVX512 INLINE void some_rows(const Quantized *matrix, const float *x, size_t first, size_t rows, size_t tokens,
                             float (*y)[TOGETHER]) {
    const __m512 code = _mm512_loadu_ps(matrix->code);
    size_t columns = matrix->columns, stride = columns / 2, chunks = columns / CHUNK;
    __m512 sums[TOGETHER][TOKENS];
    float scales[TOGETHER][SEGMENT + 1];
    for (size_t row = 0; row < rows; row++)
        for (size_t token = 0; token < tokens; token++) sums[row][token] = _mm512_setzero_ps();
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
            __m512 parts[TOGETHER][TOKENS];
            for (size_t row = 0; row < rows; row++) {
                _mm_prefetch((const char *)bytes + row * stride + FAR, _MM_HINT_T0);
                codes[row] = _mm512_maskz_loadu_epi32(there, bytes + row * stride);
                for (size_t token = 0; token < tokens; token++) parts[row][token] = _mm512_setzero_ps();
            }
            for (size_t nibble = 0; nibble < NIBBLES; nibble++, x += lanes) {
                __m512 numbers[TOGETHER];
                for (size_t row = 0; row < rows; row++) {
                    numbers[row] = _mm512_permutexvar_ps(codes[row], code);
                    codes[row] = _mm512_srli_epi32(codes[row], 4);
                }
                for (size_t token = 0; token < tokens; token++) {
                    __m512 some = _mm512_maskz_loadu_ps(there, x + token * columns);
                    for (size_t row = 0; row < rows; row++)
                        parts[row][token] = _mm512_fmadd_ps(numbers[row], some, parts[row][token]);
                }
            }
            for (size_t row = 0; row < rows; row++) {
                const float *at = scales[row] + chunk;
                __m512 scale = _mm512_mask_broadcastss_ps(_mm512_set1_ps(at[0]), 0xff00, _mm_load_ss(at + 1));
                for (size_t token = 0; token < tokens; token++)
                    sums[row][token] = _mm512_fmadd_ps(parts[row][token], scale, sums[row][token]);
            }
        }
    }
    for (size_t row = 0; row < rows; row++)
        for (size_t token = 0; token < tokens; token++) y[token][row] = _mm512_reduce_add_ps(sums[row][token]);
}

/* The same for numbers that are known when this is compiled. */
#define OF(ROWS, COUNT)                                                                                                \
    AVX512 static void rows_##ROWS##_##COUNT(const Quantized *matrix, const float *x, size_t first,                    \
                                             float (*y)[TOGETHER]) {                                                   \
        some_rows(matrix, x, first, ROWS, COUNT, y);                                                                   \
    }
OF(1, 1)
OF(1, 2)
OF(1, 4)
OF(2, 1)
OF(2, 2)
OF(2, 4)
OF(4, 1)
typedef void (*Some)(const Quantized *, const float *, size_t, float (*)[TOGETHER]);
static const Some singles[] = {rows_1_1, rows_1_2, rows_1_4}, pairs[] = {rows_2_1, rows_2_2, rows_2_4};

void zamba_compat_multiplied_512(const Quantized *matrix, const float *x, size_t tokens, size_t first, size_t last,
                                 int together, float *y, bfloat16 *out) {
    size_t most = tokens > 1 ? 2 /* the registers hold no more */ : together ? TOGETHER : 1;
    for (size_t row = first, rows; row < last; row += rows) {
        rows = row + most <= last ? most : 1;
        /* The rows' weights stay in the caches from some tokens to the next. */
        for (size_t token = 0, some; token < tokens; token += some) {
            size_t kind = tokens - token < 2 ? 0 : tokens - token < TOKENS ? 1 : 2;
            float found[TOKENS][TOGETHER];
            some = (size_t)1 << kind;
            (rows == TOGETHER ? rows_4_1 : rows == 2 ? pairs[kind] : singles[kind])(
                matrix, x + token * matrix->columns, row, found);
            for (size_t t = 0; t < some; t++)
                for (size_t k = 0; k < rows; k++) {
                    size_t place = (token + t) * matrix->rows + row + k;
                    if (y)
                        y[place] = found[t][k];
                    else
                        out[place] = rounded(found[t][k]);
                }
        }
    }
}

/* `count` rows from `start` on, the code's numbers times their scales, rounded once. */
AVX512 void zamba_compat_written_512(const Quantized *matrix, size_t start, size_t count, bfloat16 *y) {
    const __m512 code = _mm512_loadu_ps(matrix->code);
    const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
    size_t blocks = matrix->columns / matrix->block;
    const uint8_t *bytes = matrix->data + start * (matrix->columns / 2);
    float scales[SEGMENT];
    for (size_t block = 0; block < count * blocks; block++) {
        if (block % SEGMENT == 0)
            scales_of(matrix, start * blocks + block, least(count * blocks - block, SEGMENT), scales);
        __m512 scaled = _mm512_mul_ps(code, _mm512_set1_ps(scales[block % SEGMENT]));
        /* As `rounded`: the bits of a bfloat16, once below and once above. */
        __m512i bits = _mm512_castps_si512(scaled), even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, half)), 16);
        __mmask16 none = _mm512_cmp_ps_mask(scaled, scaled, _CMP_UNORD_Q);
        __m512i low = _mm512_mask_mov_epi32(bits, none, _mm512_set1_epi32(0x7fc0)), high = _mm512_slli_epi32(low, 16);
        for (size_t i = 0; i < matrix->block; i += 2 * LANES, bytes += LANES, y += 2 * LANES) {
            __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
            __m512i first = _mm512_permutexvar_epi32(_mm512_srli_epi32(codes, 4), low);
            _mm512_storeu_si512(y, _mm512_or_si512(first, _mm512_permutexvar_epi32(codes, high)));
        }
    }
}
#endif
