/* Matrices that bitsandbytes quantized to 4 bits: their product with a vector, and their weights in float32.
 *
 * Loaded as kernels.c is. Written for x86-64 with AVX2: elsewhere zamba_compat_quantized_kind() is 0 and nothing else
 * here may be called.
 */
#include "quantized.h"

#if !defined(__x86_64__)
EXPORT int zamba_compat_quantized_kind(void) { return 0; }
#else
EXPORT int zamba_compat_quantized_kind(void) { return has_avx2(); }

typedef struct {
    const Quantized *matrix;
    size_t start;   /* the first row */
    const float *x; /* [columns], or with AVX-512 [tokens, columns], in the order of `ARRANGED`; or null */
    float *y;       /* [rows], or [rows, columns] where x is null; null where the product goes to `out` */
    bfloat16 *out;  /* [tokens, rows], or as y */
    size_t tokens;
    int together; /* as in Team */
} Job;

/* The code's numbers byte by byte: tables for shuffles, which find 32 bytes at a time. */
AVX2 static inline void tables(const Quantized *matrix, __m256i *table) {
    const uint8_t *bytes = (const uint8_t *)matrix->code;
    for (int k = 0; k < 4; k++) {
        uint8_t some[16];
        for (int code = 0; code < 16; code++) some[code] = bytes[4 * code + k];
        table[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)some));
    }
}

/* 32 codes as numbers. Unpacking goes by halves of vectors: [k] has those of codes 4k to 4k + 3 and 16 further on. */
AVX2 static inline void looked_up(const __m256i *table, __m256i codes, __m256 *numbers) {
    __m256i byte[4];
    for (int k = 0; k < 4; k++) byte[k] = _mm256_shuffle_epi8(table[k], codes);
    __m256i low[2] = {_mm256_unpacklo_epi8(byte[0], byte[1]), _mm256_unpackhi_epi8(byte[0], byte[1])};
    __m256i high[2] = {_mm256_unpacklo_epi8(byte[2], byte[3]), _mm256_unpackhi_epi8(byte[2], byte[3])};
    for (int k = 0; k < 4; k++)
        numbers[k] = _mm256_castsi256_ps(k % 2 ? _mm256_unpackhi_epi16(low[k / 2], high[k / 2])
                                               : _mm256_unpacklo_epi16(low[k / 2], high[k / 2]));
}

AVX2 static void multiplied(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Quantized *matrix = job->matrix;
    const __m256i nibble = _mm256_set1_epi8(15);
    size_t blocks = matrix->columns / matrix->block;
    float scales[SEGMENT];
    __m256i table[4];
    tables(matrix, table);
    for (size_t row = first; row < last; row++) {
        const uint8_t *bytes = matrix->data + row * (matrix->columns / 2);
        const float *x = job->x;
        __m256 sum = _mm256_setzero_ps();
        for (size_t block = 0; block < blocks; block++) {
            if (block % SEGMENT == 0)
                scales_of(matrix, row * blocks + block, least(blocks - block, SEGMENT), scales);
            __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
            for (size_t i = 0; i < matrix->block; i += CHUNK, x += CHUNK, bytes += CHUNK / 2) {
                _mm_prefetch((const char *)bytes + 1024, _MM_HINT_T0);
                __m256i both = _mm256_loadu_si256((const __m256i *)bytes);
                __m256 numbers[4];
                looked_up(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), numbers);
                for (int k = 0; k < 4; k++) sums[k] = _mm256_fmadd_ps(numbers[k], _mm256_loadu_ps(x + 8 * k), sums[k]);
                looked_up(table, _mm256_and_si256(both, nibble), numbers);
                for (int k = 0; k < 4; k++)
                    sums[k] = _mm256_fmadd_ps(numbers[k], _mm256_loadu_ps(x + 32 + 8 * k), sums[k]);
            }
            __m256 whole = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
            sum = _mm256_fmadd_ps(whole, _mm256_set1_ps(scales[block % SEGMENT]), sum);
        }
        if (job->y)
            job->y[row] = total(sum);
        else
            job->out[row] = rounded(total(sum));
    }
}

AVX2 static void decoded(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Quantized *matrix = job->matrix;
    const __m256i nibble = _mm256_set1_epi8(15);
    size_t blocks = matrix->columns / matrix->block;
    float scales[SEGMENT];
    __m256i table[4];
    tables(matrix, table);
    for (size_t row = first; row < last; row++) {
        const uint8_t *bytes = matrix->data + (job->start + row) * (matrix->columns / 2);
        float *y = job->y + row * matrix->columns;
        for (size_t block = 0; block < blocks; block++) {
            if (block % SEGMENT == 0)
                scales_of(matrix, (job->start + row) * blocks + block, least(blocks - block, SEGMENT), scales);
            __m256 scale = _mm256_set1_ps(scales[block % SEGMENT]);
            for (size_t i = 0; i < matrix->block; i += CHUNK, y += CHUNK, bytes += CHUNK / 2) {
                __m256i both = _mm256_loadu_si256((const __m256i *)bytes);
                __m256 even[4], odd[4];
                looked_up(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), even);
                looked_up(table, _mm256_and_si256(both, nibble), odd);
                for (int k = 0; k < 4; k++) {
                    __m256 pairs[2] = {_mm256_mul_ps(scale, _mm256_unpacklo_ps(even[k], odd[k])),
                                       _mm256_mul_ps(scale, _mm256_unpackhi_ps(even[k], odd[k]))};
                    for (int half = 0; half < 2; half++) {
                        _mm_storeu_ps(y + 8 * k + 4 * half, _mm256_castps256_ps128(pairs[half]));
                        _mm_storeu_ps(y + 8 * k + 4 * half + 32, _mm256_extractf128_ps(pairs[half], 1));
                    }
                }
            }
        }
    }
}

/* Calls `with` a place in the order in which `multiplied` meets x, and the column whose x belongs there: of each chunk
 * those of high nibbles, then those of low ones, as looked_up orders them. */
#define ARRANGED(columns, with)                                                                                        \
    for (size_t chunk = 0; chunk < (columns); chunk += CHUNK)                                                          \
        for (size_t odd = 0; odd < 2; odd++)                                                                           \
            for (size_t vector = 0; vector < 4; vector++)                                                              \
                for (size_t lane = 0; lane < 8; lane++)                                                                \
                    with(chunk + odd * 32 + vector * 8 + lane, chunk + 2 * (4 * vector + lane % 4 + lane / 4 * 16) + odd)

static void multiplied_512(void *given, size_t first, size_t last) {
    const Job *job = given;
    zamba_compat_multiplied_512(job->matrix, job->x, job->tokens, first, last, job->together, job->y, job->out);
}

static void written_512(void *given, size_t first, size_t last) {
    const Job *job = given;
    zamba_compat_written_512(job->matrix, job->start + first, last - first, job->out + first * job->matrix->columns);
}

/* y [rows] of x [columns]; room [columns] is overwritten. */
EXPORT void zamba_compat_quantized_product(const Team *team, const Quantized *matrix, const float *x, float *room,
                                           float *y) {
    Job job = {matrix, 0, room, y, NULL, 1, team->together};
    if (team->wide) {
        zamba_compat_arranged_512(matrix->columns, x, NULL, room);
        spread(team, multiplied_512, &job, matrix->rows);
        return;
    }
#define COPIED(place, column) room[place] = x[column]
    ARRANGED(matrix->columns, COPIED);
    spread(team, multiplied, &job, matrix->rows);
}

/* y [tokens, rows] of x [tokens, columns], both bfloat16, rounded once; room [tokens, columns] is overwritten. */
EXPORT void zamba_compat_quantized_tokens(const Team *team, const Quantized *matrix, size_t tokens, const bfloat16 *x,
                                          float *room, bfloat16 *y) {
    size_t columns = matrix->columns;
    Job job = {matrix, 0, room, NULL, y, tokens, team->together};
    if (team->wide) {
        for (size_t token = 0; token < tokens; token++)
            zamba_compat_arranged_512(columns, NULL, x + token * columns, room + token * columns);
        spread(team, multiplied_512, &job, matrix->rows);
        return;
    }
    for (size_t token = 0; token < tokens; token++, x += columns, job.out += matrix->rows) {
#define WIDENED(place, column) room[place] = widened(x[column])
        ARRANGED(columns, WIDENED);
        spread(team, multiplied, &job, matrix->rows);
    }
}

/* Rows from start on, count of them, into y [count, columns], rounded once. AVX-512. */
EXPORT void zamba_compat_written(const Team *team, const Quantized *matrix, size_t start, size_t count, bfloat16 *y) {
    Job job = {matrix, start, NULL, NULL, y, 0, 0};
    spread(team, written_512, &job, count);
}

/* Rows from start on, count of them, into y [count, columns]. */
EXPORT void zamba_compat_dequantize(const Team *team, const Quantized *matrix, size_t start, size_t count, float *y) {
    Job job = {matrix, start, NULL, y, NULL, 0, 0};
    spread(team, decoded, &job, count);
}
#endif
