/* bfloat16 matrices in 12 bits a weight, without loss, and their product with a vector.
 *
 * Loaded as kernels.c is. Written for x86-64 with AVX2: elsewhere zamba_compat_packed_kind() is 0 and nothing else here
 * may be called.
 *
 * A weight's high byte is its sign and the upper seven bits of its exponent, which of a row's weights nearly all lie
 * within seven of the largest. A code of four bits says which: the sign, and 1 to 7 above the row's base, or 0 for zero.
 * The low byte stays. The few weights that are smaller are zero there, and listed beside.
 */
#include "rows.h"

#if !defined(__x86_64__)
EXPORT int zamba_compat_packed_kind(void) { return 0; }
#else
EXPORT int zamba_compat_packed_kind(void) { return has_avx2(); }

#define CHUNK 64   /* weights of a row that are packed together */
#define BYTES 96   /* of a chunk: 64 low ones, then the codes, those of its second half in the high nibbles */
#define LEVELS 7u  /* that a code can tell apart */

/* Of row r the weights number offset[r] to offset[r + 1] are listed: columns and values. */
typedef struct {
    uint8_t *data;    /* [rows, columns / CHUNK, BYTES] */
    uint8_t *base;    /* [rows] */
    uint32_t *offset; /* [rows + 1] */
    uint32_t *column;
    float *value;
} Packed;

typedef struct {
    const Matrix *matrix;
    const Packed *packed;
    const float *x;    /* [columns] */
    const float *plus; /* [rows], or null */
    float times;
    const Matrix *up; /* of an adapter, or null */
    const float *low; /* what its first matrix made of x, turned */
    float *y;         /* [rows], or null where it goes to `out` */
    bfloat16 *out;    /* [rows] */
    int together;
    int differs;
} Job;

/* Where of its half chunk a weight is: unpacking bytes to float32 goes by halves of vectors, and comes out in order. */
INLINE size_t place(size_t i) { return i / 8 * 4 + i % 4 + (i % 8 < 4 ? 0 : 16); }

INLINE unsigned upper(bfloat16 weight) { return weight >> 8 & 0x7f; }

INLINE int is_listed(bfloat16 weight, unsigned base) { return upper(weight) <= base && (weight & 0x7fff); }

static void counted(void *given, size_t first, size_t last) {
    const Job *job = given;
    for (size_t row = first; row < last; row++) {
        const bfloat16 *weights = job->matrix->data + row * job->matrix->stride;
        unsigned top = LEVELS, listed = 0;
        for (size_t i = 0; i < job->matrix->columns; i++) top = upper(weights[i]) > top ? upper(weights[i]) : top;
        for (size_t i = 0; i < job->matrix->columns; i++) listed += is_listed(weights[i], top - LEVELS);
        job->packed->base[row] = (uint8_t)(top - LEVELS);
        job->packed->offset[row + 1] = listed;
    }
}

/* The code and the low byte of a weight: zero where it is listed. */
INLINE void coded(bfloat16 weight, unsigned base, uint8_t *code, uint8_t *low) {
    int kept = upper(weight) > base;
    *code = (uint8_t)(weight >> 15 << 3 | (kept ? upper(weight) - base : 0));
    *low = kept ? (uint8_t)weight : 0;
}

static void packed(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Packed *to = job->packed;
    size_t columns = job->matrix->columns;
    for (size_t row = first; row < last; row++) {
        const bfloat16 *weights = job->matrix->data + row * job->matrix->stride;
        uint8_t *out = to->data + row * (columns / CHUNK) * BYTES;
        uint32_t at = to->offset[row];
        for (size_t i = 0; i < columns; i += CHUNK, out += BYTES)
            for (size_t k = 0; k < CHUNK / 2; k++) {
                uint8_t codes[2];
                for (size_t half = 0; half < 2; half++)
                    coded(weights[i + half * CHUNK / 2 + k], to->base[row], codes + half,
                          out + half * CHUNK / 2 + place(k));
                out[CHUNK + place(k)] = (uint8_t)(codes[0] | codes[1] << 4);
            }
        for (size_t i = 0; i < columns; i++)
            if (is_listed(weights[i], to->base[row])) {
                to->column[at] = (uint32_t)i;
                to->value[at++] = widened(weights[i]);
            }
    }
}

/* Of each code the high byte. */
AVX2 INLINE __m256i table(unsigned base) {
    const __m256i sign = _mm256_broadcastsi128_si256(_mm_set_epi64x((int64_t)0x8080808080808080u, 0));
    const __m256i above = _mm256_set1_epi64x(0x0706050403020100), zero = _mm256_setzero_si256();
    __m256i exponent = _mm256_add_epi8(above, _mm256_set1_epi8((char)base));
    return _mm256_or_si256(sign, _mm256_andnot_si256(_mm256_cmpeq_epi8(above, zero), exponent));
}

/* Half a chunk's high bytes. */
AVX2 INLINE __m256i high(__m256i table, const uint8_t *chunk, int half) {
    __m256i both = _mm256_loadu_si256((const __m256i *)(chunk + CHUNK));
    __m256i codes = _mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
    return _mm256_shuffle_epi8(table, codes);
}

/* Half a chunk times x, onto four sums. */
AVX2 INLINE void added(__m256i table, const uint8_t *chunk, int half, const float *x, __m256 *sums) {
    __m256i low = _mm256_loadu_si256((const __m256i *)(chunk + half * CHUNK / 2)), zero = _mm256_setzero_si256();
    __m256i upper = high(table, chunk, half);
    __m256i pairs[2] = {_mm256_unpacklo_epi8(low, upper), _mm256_unpackhi_epi8(low, upper)};
    for (int k = 0; k < 4; k++) {
        __m256i wide = k % 2 ? _mm256_unpackhi_epi16(zero, pairs[k / 2]) : _mm256_unpacklo_epi16(zero, pairs[k / 2]);
        sums[k] = _mm256_fmadd_ps(_mm256_castsi256_ps(wide), _mm256_loadu_ps(x + half * CHUNK / 2 + 8 * k), sums[k]);
    }
}

/* `count` rows' chunks times x. */
AVX2 INLINE void chunks_times(const Job *job, size_t row, size_t count, float *y) {
    size_t chunks = job->matrix->columns / CHUNK;
    const uint8_t *chunk = job->packed->data + row * chunks * BYTES;
    __m256i high[TOGETHER];
    __m256 sums[TOGETHER][4];
    for (size_t k = 0; k < count; k++) {
        high[k] = table(job->packed->base[row + k]);
        for (int part = 0; part < 4; part++) sums[k][part] = _mm256_setzero_ps();
    }
    for (size_t i = 0; i < chunks; i++, chunk += BYTES)
        for (size_t k = 0; k < count; k++) {
            const uint8_t *at = chunk + k * chunks * BYTES;
            if (count > 1) ask_ahead(at, i * BYTES, chunks * BYTES);
            if (count > 1) ask_ahead(at + BYTES / 2, i * BYTES, chunks * BYTES);
            added(high[k], at, 0, job->x + i * CHUNK, sums[k]);
            added(high[k], at, 1, job->x + i * CHUNK, sums[k]);
        }
    for (size_t k = 0; k < count; k++)
        y[k] = total(_mm256_add_ps(_mm256_add_ps(sums[k][0], sums[k][1]), _mm256_add_ps(sums[k][2], sums[k][3])));
}

/* What is added to a row's product, and where it goes. */
AVX2 INLINE void finished(const Job *job, size_t row, float y) {
    const Packed *from = job->packed;
    for (uint32_t at = from->offset[row]; at < from->offset[row + 1]; at++)
        y += from->value[at] * job->x[from->column[at]];
    if (job->plus) y += job->plus[row] * job->times;
    if (job->up) y += row_times(job->up->data + row * job->up->stride, job->low, job->up->columns);
    if (job->y)
        job->y[row] = y;
    else
        job->out[row] = rounded(y);
}

AVX2 static void multiplied(void *given, size_t first, size_t last) {
    const Job *job = given;
    size_t rows = job->matrix->rows, row = first * TOGETHER, end = last * TOGETHER < rows ? last * TOGETHER : rows;
    float y[TOGETHER];
    for (; job->together && row + TOGETHER <= end; row += TOGETHER) {
        chunks_times(job, row, TOGETHER, y);
        for (size_t k = 0; k < TOGETHER; k++) finished(job, row + k, y[k]);
    }
    for (; row < end; row++) {
        chunks_times(job, row, 1, y);
        finished(job, row, y[0]);
    }
}

/* Whether half a chunk's weights are those given, but for listed ones, which are told by their places. */
AVX2 INLINE uint64_t unlike(__m256i table, const uint8_t *chunk, int half, const bfloat16 *weights) {
    __m256i low = _mm256_loadu_si256((const __m256i *)(chunk + half * CHUNK / 2)), upper = high(table, chunk, half);
    __m256i pairs[2] = {_mm256_unpacklo_epi8(low, upper), _mm256_unpackhi_epi8(low, upper)};
    uint64_t found = 0;
    for (int k = 0; k < 2; k++) {
        __m256i in_order = _mm256_permute4x64_epi64(pairs[k], 0xd8);
        __m256i given = _mm256_loadu_si256((const __m256i *)(weights + half * CHUNK / 2 + 16 * k));
        uint32_t equal = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi16(in_order, given));
        found |= (uint64_t)~equal << (32 * k);
    }
    return found;
}

AVX2 static void compared(void *given, size_t first, size_t last) {
    Job *job = given;
    const Packed *from = job->packed;
    size_t chunks = job->matrix->columns / CHUNK;
    for (size_t row = first; row < last; row++) {
        const bfloat16 *weights = job->matrix->data + row * job->matrix->stride;
        const uint8_t *chunk = from->data + row * chunks * BYTES;
        __m256i high = table(from->base[row]);
        uint32_t at = from->offset[row], end = from->offset[row + 1];
        for (size_t i = 0; i < chunks * CHUNK; i += CHUNK, chunk += BYTES) {
            if (!(unlike(high, chunk, 0, weights + i) | unlike(high, chunk, 1, weights + i))) continue;
            for (size_t k = i; k < i + CHUNK; k++) {
                size_t half = k % CHUNK / (CHUNK / 2), spot = place(k % (CHUNK / 2));
                uint8_t code, low;
                coded(weights[k], from->base[row], &code, &low);
                int is_kept = chunk[half * CHUNK / 2 + spot] == low && (chunk[CHUNK + spot] >> 4 * half & 15) == code;
                int is_next = at < end && from->column[at] == k;
                if (!is_kept || upper(weights[k]) > from->base[row] + LEVELS ||
                    is_listed(weights[k], from->base[row]) != is_next ||
                    (is_next && from->value[at] != widened(weights[k]))) {
                    job->differs = 1; /* whoever finds it writes the same */
                    return;
                }
                at += (uint32_t)is_next;
            }
        }
        if (at != end) job->differs = 1;
    }
}

/* Each row's base, and into offset[row + 1] how many of its weights are to be listed. */
EXPORT void zamba_compat_packed_count(const Team *team, const Matrix *matrix, const Packed *packed) {
    Job job = {.matrix = matrix, .packed = packed};
    spread(team, counted, &job, matrix->rows);
}

/* Everything else, with the offsets summed up. */
EXPORT void zamba_compat_packed_fill(const Team *team, const Matrix *matrix, const Packed *to) {
    Job job = {.matrix = matrix, .packed = to};
    spread(team, packed, &job, matrix->rows);
}

/* Whether the matrix is still the one that was packed; rows from first to before last. */
EXPORT int zamba_compat_packed_same(const Team *team, const Matrix *matrix, const Packed *packed, size_t first,
                                    size_t last) {
    Job job = {.matrix = matrix, .packed = packed};
    if (last - first < matrix->rows)
        compared(&job, first, last);
    else
        spread(team, compared, &job, matrix->rows);
    return !job.differs;
}

/* y [rows] of x [columns]; of the matrix only its sizes are looked at. */
EXPORT void zamba_compat_packed_product(const Team *team, const Matrix *matrix, const Packed *packed, const float *x,
                                        float *y) {
    Job job = {.matrix = matrix, .packed = packed, .x = x, .y = y, .together = team->together};
    spread(team, multiplied, &job, groups_of(matrix->rows));
}

/* The same of bfloat16; and plus * times, and an adapter's up * (down * x), where they are given.
 * x: as long as down has columns, of which the first are for the matrix. room: float32 for as many and for the rank,
 * then bfloat16 for the rank. */
EXPORT void zamba_compat_packed_token(const Team *team, const Matrix *matrix, const Packed *packed, const bfloat16 *x,
                                      const float *plus, float times, const Matrix *down, const Matrix *up, float *room,
                                      bfloat16 *y) {
    Job job = {.matrix = matrix, .packed = packed, .x = room, .plus = plus, .times = times, .up = up, .out = y,
               .together = team->together};
    if (up) {
        float *low = room + down->columns;
        bfloat16 *narrow = (bfloat16 *)(low + down->rows);
        zamba_compat_rows(team, down, x, room, narrow);
        turned(narrow, down->rows, low);
        job.low = low;
    }
    for (size_t i = 0; i < matrix->columns; i++) room[i] = widened(x[i]);
    spread(team, multiplied, &job, groups_of(matrix->rows));
}
#endif
