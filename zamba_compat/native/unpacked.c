/* Weights of 4 bits in the layout of bitsandbytes' kernel for CPUs, written out row by row in bfloat16.
 *
 * packed_4bit.py has the layout. Loaded as kernels.c is. Written for x86-64 with AVX2: elsewhere
 * zamba_compat_unpacked_kind() is 0 and nothing else here may be called.
 */
#include "team.h"

#if !defined(__x86_64__)
EXPORT int zamba_compat_unpacked_kind(void) { return 0; }
#else
#include "avx2.h"

EXPORT int zamba_compat_unpacked_kind(void) { return has_avx2(); }

#define ROWS 32    /* of a block: byte 2 j of a pair of columns has row j in its low nibble, row j + 16 in the high */
#define COLUMNS 16 /* that are written out together */
#define EIGHT 8

typedef struct {
    const uint8_t *data; /* [rows / 32, columns / 2, 32] */
    const float *code;   /* [16] */
    const float *scale;  /* [rows, columns / block] */
    size_t rows, columns, block;
} Packed;

typedef struct {
    const Packed *packed;
    bfloat16 *out; /* [rows, columns] */
} Job;

/* The code times a row's scale, in bfloat16: its low bytes and its high bytes. */
AVX2 INLINE void scaled(const float *code, float scale, __m128i *low, __m128i *high) {
    __m256 factor = _mm256_set1_ps(scale);
    __m256i first = rounded_eight(_mm256_mul_ps(_mm256_loadu_ps(code), factor));
    __m256i second = rounded_eight(_mm256_mul_ps(_mm256_loadu_ps(code + EIGHT), factor));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
    __m256i lows = _mm256_and_si256(words, _mm256_set1_epi16(255)), highs = _mm256_srli_epi16(words, 8);
    *low = _mm_packus_epi16(_mm256_castsi256_si128(lows), _mm256_extracti128_si256(lows, 1));
    *high = _mm_packus_epi16(_mm256_castsi256_si128(highs), _mm256_extracti128_si256(highs, 1));
}

/* 8 x 8 numbers of 16 bits in each half. */
AVX2 INLINE void turned(__m256i *rows) {
    __m256i some[EIGHT], other[EIGHT];
    for (size_t i = 0; i < 4; i++) {
        some[2 * i] = _mm256_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
        some[2 * i + 1] = _mm256_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
    }
    for (size_t i = 0; i < EIGHT; i += 4)
        for (size_t k = 0; k < 2; k++) {
            other[i + 2 * k] = _mm256_unpacklo_epi32(some[i + k], some[i + k + 2]);
            other[i + 2 * k + 1] = _mm256_unpackhi_epi32(some[i + k], some[i + k + 2]);
        }
    for (size_t k = 0; k < 4; k++) {
        rows[2 * k] = _mm256_unpacklo_epi64(other[k], other[k + 4]);
        rows[2 * k + 1] = _mm256_unpackhi_epi64(other[k], other[k + 4]);
    }
}

/* COLUMNS of two rows, one in each half; places: where those begin, or null. */
AVX2 INLINE void found(__m256i low, __m256i high, __m256i codes, bfloat16 *first, bfloat16 *second) {
    __m256i lows = _mm256_shuffle_epi8(low, codes), highs = _mm256_shuffle_epi8(high, codes);
    __m256i front = _mm256_unpacklo_epi8(lows, highs), back = _mm256_unpackhi_epi8(lows, highs);
    if (first) _mm256_storeu_si256((__m256i *)first, _mm256_permute2x128_si256(front, back, 0x20));
    if (second) _mm256_storeu_si256((__m256i *)second, _mm256_permute2x128_si256(front, back, 0x31));
}

AVX2 static void blocks_of_rows(void *given, size_t begin, size_t end) {
    const Job *job = given;
    const Packed *packed = job->packed;
    size_t columns = packed->columns, scales = columns / packed->block;
    const __m256i nibble = _mm256_set1_epi8(15);
    for (size_t first = begin * ROWS; first < end * ROWS; first += ROWS)
        for (size_t column = 0; column < columns; column += packed->block) {
            __m256i low[2 * EIGHT], high[2 * EIGHT]; /* of rows k and k + 8, then of those 16 further on */
            for (size_t k = 0; k < 2 * EIGHT; k++) {
                size_t row = first + k % EIGHT + k / EIGHT * 2 * EIGHT;
                __m128i lows[2], highs[2];
                for (size_t half = 0; half < 2; half++, row += EIGHT) {
                    float scale = row < packed->rows ? packed->scale[row * scales + column / packed->block] : 0;
                    scaled(packed->code, scale, lows + half, highs + half);
                }
                low[k] = _mm256_set_m128i(lows[1], lows[0]), high[k] = _mm256_set_m128i(highs[1], highs[0]);
            }
            for (size_t done = column; done < column + packed->block; done += COLUMNS) {
                const uint8_t *bytes = packed->data + (first * columns + done * ROWS) / 2;
                __m256i codes[EIGHT];
                for (size_t k = 0; k < EIGHT; k++) codes[k] = _mm256_loadu_si256((const __m256i *)(bytes + k * ROWS));
                turned(codes);
                for (size_t k = 0; k < 2 * EIGHT; k++) {
                    size_t row = first + k % EIGHT + k / EIGHT * 2 * EIGHT;
                    __m256i some = k < EIGHT ? codes[k] : _mm256_srli_epi16(codes[k - EIGHT], 4);
                    bfloat16 *to = job->out + row * columns + done;
                    found(low[k], high[k], _mm256_and_si256(some, nibble), row < packed->rows ? to : 0,
                          row + EIGHT < packed->rows ? to + EIGHT * columns : 0);
                }
            }
        }
}

/* out [rows, columns]: the code's numbers times their scales, rounded once. */
EXPORT void zamba_compat_unpacked(const Team *team, const Packed *packed, bfloat16 *out) {
    Job job = {packed, out};
    spread(team, blocks_of_rows, &job, (packed->rows + ROWS - 1) / ROWS);
}
#endif
