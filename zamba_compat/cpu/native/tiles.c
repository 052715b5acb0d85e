/* A bfloat16 matrix times many tokens, with the tile instructions of AMX.
 *
 * Tiles multiply left [16, 32] by right [32, 16], the latter as [16 pairs of columns, 16, 2]. So a weight, on the left,
 * is read where it lies, once, and asked for while the rows before it are multiplied; the tokens, fewer, are turned. A
 * core of a shared Xeon multiplies at 2 TFLOP/s, or for tenths of a second at a quarter of that while a neighbour
 * computes: a thread takes the next rows when it is done with its own, instead of a share.
 *
 * Loaded as kernels.c is. Where zamba_compat_tiles_kind() is 0 nothing else here may be called.
 */
#include "rows.h"
#include "tiles.h"

#ifndef HAS_TILES
EXPORT int zamba_compat_tiles_kind(void) { return 0; }
#else
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAIR (2 * TILE * BOTH) /* numbers of two tiles of bfloat16 */
#define SUMS (4 * TILE * TILE) /* of 32 rows and 32 tokens, in four tiles of float32 */
#define DEEP 1024              /* columns at a time */
#define PANELS 4               /* of 32 rows each, that a thread multiplies by all tokens before it takes others */
#define TOKENS 512             /* at a time */

/* Whether there are tiles of bfloat16, the system keeps their registers, and lets this process use them. */
EXPORT int zamba_compat_tiles_kind(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return 0; /* bfloat16, tiles */
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return 0; /* AVX512-BF16 */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* xgetbv */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x600e6) != 0x600e6) return 0; /* the registers of AVX512 and of tiles */
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles' data */) == 0;
}

/* The weights that come after these, which are asked for meanwhile: of `rows` rows the same columns. */
typedef struct {
    const char *at;
    size_t stride; /* bytes */
    size_t rows;
} Ahead;

AVX512 INLINE void multiplied_asking(const bfloat16 *left, size_t stride, const bfloat16 *right, size_t steps,
                                     const Ahead *ahead, size_t rows) {
    const char *upper = (const char *)left, *lower = upper + TILE * stride, *next = ahead->at;
    for (size_t step = 0; step < steps; step++, upper += 64, lower += 64, next += 64, right += PAIR) {
        _tile_loadd(6, right, 64);
        _tile_loadd(4, upper, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, lower, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, right + PAIR / 2, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        for (size_t k = 0; k < rows; k++) _mm_prefetch(next + k * ahead->stride, _MM_HINT_T1);
    }
}

/* sums [2 left, 2 right, 16, 16] of left [32, 32 * steps], its rows so many bytes apart, and right [steps, 2, 16, 32],
 * added to what is there unless `first`. */
AVX512 static void multiplied(const bfloat16 *left, size_t stride, const bfloat16 *right, size_t steps, float *sums,
                              int first, const Ahead *ahead) {
    opened(sums, TILE, SUMS / 4, SUMS / 2, !first);
    switch (ahead->rows) {
    case 0: multiplied_asking(left, stride, right, steps, ahead, 0); break;
    case 1: multiplied_asking(left, stride, right, steps, ahead, 1); break;
    case 2: multiplied_asking(left, stride, right, steps, ahead, 2); break;
    case 4: multiplied_asking(left, stride, right, steps, ahead, 4); break;
    case 8: multiplied_asking(left, stride, right, steps, ahead, 8); break;
    default: multiplied_asking(left, stride, right, steps, ahead, 16); break;
    }
    closed(sums, TILE, SUMS / 4, SUMS / 2);
}

static inline size_t pairs_of(size_t count) { return (count + BOTH - 1) / BOTH; }

/* [32, columns] as right is read: [steps, 2, 16 pairs of columns, 16 rows, 2], zeros where there are fewer rows. */
AVX512 static void turned_pairs(const bfloat16 *from, size_t stride, size_t rows, size_t columns, bfloat16 *to) {
    for (size_t done = 0; done < columns; done += BOTH, to += PAIR)
        for (size_t half = 0; half < BOTH; half += TILE) {
            __m512i lines[TILE];
            for (size_t k = 0; k < TILE; k++) {
                size_t row = half + k;
                lines[k] = row < rows ? _mm512_loadu_si512(from + row * stride + done) : _mm512_setzero_si512();
            }
            transposed(lines);
            for (size_t k = 0; k < TILE; k++) _mm512_store_si512(to + (half + k) * BOTH, lines[k]);
        }
}

typedef struct {
    const Matrix *matrix;
    const bfloat16 *x; /* [tokens, columns] */
    size_t x_stride, tokens;
    bfloat16 *y; /* [tokens, rows] */
    size_t y_stride;
    int add;
    bfloat16 *packed;
    char *room;
    size_t room_size, panels, next;
} Job;

AVX512 static void packed_tokens(void *given, size_t first, size_t last) {
    const Job *job = given;
    size_t columns = job->matrix->columns;
    for (size_t pair = first; pair < last; pair++)
        turned_pairs(job->x + pair * BOTH * job->x_stride, job->x_stride, job->tokens - pair * BOTH, columns,
                     job->packed + pair * pairs_of(columns) * PAIR);
}

/* sums of 32 rows and 32 tokens, rounded, to where they belong. */
AVX512 static void finished(const Job *job, const float *sums, size_t row, size_t token) {
    size_t rows = job->matrix->rows - row;
    __mmask32 there = rows < BOTH ? (1u << rows) - 1 : ~0u;
    for (size_t half = 0; half < 2; half++) {
        __m512i low[TILE], high[TILE];
        for (size_t k = 0; k < TILE; k++) {
            low[k] = _mm512_load_si512(sums + half * SUMS / 4 + k * TILE);
            high[k] = _mm512_load_si512(sums + SUMS / 2 + half * SUMS / 4 + k * TILE);
        }
        transposed(low), transposed(high);
        for (size_t k = 0; k < TILE && token < job->tokens; k++, token++) {
            bfloat16 *to = job->y + token * job->y_stride + row;
            __m512 first = _mm512_castsi512_ps(low[k]), second = _mm512_castsi512_ps(high[k]);
            if (job->add) {
                __m512i before = _mm512_maskz_loadu_epi16(there, to);
                __m512i upper = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(before));
                __m512i lower = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(before, 1));
                first = _mm512_add_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(upper, 16)));
                second = _mm512_add_ps(second, _mm512_castsi512_ps(_mm512_slli_epi32(lower, 16)));
            }
            _mm512_mask_storeu_epi16(to, there, (__m512i)_mm512_cvtne2ps_pbh(second, first));
        }
    }
}

/* Of 32 rows of weights the columns that are multiplied next, while `times` others are: `number` of those are done. */
static inline Ahead ahead_of(const Matrix *matrix, size_t row, size_t column, size_t number, size_t times) {
    if (row + BOTH > matrix->rows || column >= matrix->columns) return (Ahead){0};
    size_t rows = 1;
    while (rows < TILE && rows * times < BOTH) rows *= 2;
    if ((number + 1) * rows > BOTH) return (Ahead){0};
    return (Ahead){(const char *)(matrix->data + (row + number * rows) * matrix->stride + column),
                   matrix->stride * sizeof(bfloat16), rows};
}

/* [32, columns], where there are fewer rows. */
static void filled_up(const bfloat16 *from, size_t stride, size_t rows, size_t columns, bfloat16 *to) {
    for (size_t row = 0; row < rows; row++) memcpy(to + row * columns, from + row * stride, columns * sizeof *to);
    memset(to + rows * columns, 0, (BOTH - rows) * columns * sizeof *to);
}

/* The rows from `row` on, job->panels times 32; then come those from `following` on. */
AVX512 static void rows_of(const Job *job, char *room, size_t row, size_t following) {
    const Matrix *matrix = job->matrix;
    size_t pairs = pairs_of(job->tokens), all = pairs_of(matrix->columns);
    size_t panels = pairs_of(least(job->panels * BOTH, matrix->rows - row));
    float *sums = (float *)room;
    bfloat16 *end = (bfloat16 *)(sums + pairs * job->panels * SUMS);
    for (size_t column = 0; column < matrix->columns; column += DEEP) {
        size_t columns = least(DEEP, matrix->columns - column), steps = pairs_of(columns);
        int last = column + columns == matrix->columns;
        for (size_t pair = 0; pair < pairs; pair++)
            for (size_t panel = 0; panel < panels; panel++) {
                size_t from = row + panel * BOTH, stride = matrix->stride;
                const bfloat16 *weights = matrix->data + from * stride + column;
                float *some = sums + (pair * panels + panel) * SUMS;
                const bfloat16 *x = job->packed + (pair * all + column / BOTH) * PAIR;
                size_t then = last ? following + panel * BOTH : from;
                Ahead ahead = ahead_of(matrix, then, last ? 0 : column + columns, pair, pairs);
                if (from + BOTH > matrix->rows) {
                    filled_up(weights, stride, matrix->rows - from, columns, end);
                    weights = end, stride = columns;
                }
                multiplied(weights, stride * sizeof *weights, x, steps, some, column == 0, &ahead);
                if (last) finished(job, some, from, pair * BOTH);
            }
    }
}

AVX512 static void taken(void *given, size_t first, size_t last) {
    Job *job = given;
    size_t rows = job->matrix->rows, some = job->panels * BOTH;
    (void)last;
    begin();
    size_t row = some * __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    while (row < rows) {
        size_t following = some * __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        rows_of(job, job->room + first * job->room_size, row, following);
        row = following;
    }
    _tile_release();
}

static inline size_t room_of(size_t tokens, size_t panels) {
    return panels * pairs_of(tokens) * SUMS * sizeof(float) + DEEP * BOTH * sizeof(bfloat16);
}

/* How many bytes of room a product of so many tokens takes. */
EXPORT size_t zamba_compat_tiles_room(const Team *team, size_t tokens, size_t columns) {
    tokens = least(tokens, TOKENS);
    return pairs_of(tokens) * pairs_of(columns) * PAIR * sizeof(bfloat16) + team->threads * room_of(tokens, PANELS);
}

/* y [tokens, rows] = x [tokens, columns] times the matrix turned, or added to y; columns are a multiple of 32. */
EXPORT void zamba_compat_tiles_product(const Team *team, const Matrix *matrix, const bfloat16 *x, size_t x_stride,
                                       size_t tokens, bfloat16 *y, size_t y_stride, int add, char *room) {
    for (size_t done = 0; done < tokens; done += TOKENS) {
        Job job = {.matrix = matrix, .x = x + done * x_stride, .x_stride = x_stride, .y = y + done * y_stride};
        job.y_stride = y_stride, job.add = add, job.tokens = least(TOKENS, tokens - done), job.panels = PANELS;
        size_t pairs = pairs_of(job.tokens), threads = (size_t)team->threads;
        while (job.panels > 1 && matrix->rows < 4 * threads * job.panels * BOTH) job.panels /= 2;
        job.packed = (bfloat16 *)room, job.room_size = room_of(job.tokens, job.panels);
        job.room = room + pairs * pairs_of(matrix->columns) * PAIR * sizeof(bfloat16);
        spread(team, packed_tokens, &job, pairs);
        spread(team, taken, &job, threads);
    }
}
#endif
