/* A bfloat16 matrix times a vector, at the speed of the memory.
 *
 * Loaded as kernels.c is. Written for x86-64 with AVX2: elsewhere zamba_compat_rows_kind() is 0 and nothing else here
 * may be called.
 */
#include "rows.h"

#if !defined(__x86_64__)
EXPORT int zamba_compat_rows_kind(void) { return 0; }
EXPORT int zamba_compat_together(void) { return 0; }
#else
EXPORT int zamba_compat_rows_kind(void) { return has_avx2(); }

/* Whether reading TOGETHER rows at once is faster than one after the other. A core of a Xeon waits for a single stream:
 * two read 13 GB/s so, and 25 with four. Those of an EPYC foresee a single one the best, and read 31 to 35. */
EXPORT int zamba_compat_together(void) { return __builtin_cpu_is("intel") != 0; }

typedef struct {
    const Matrix *matrix;
    const float *x; /* in the order of `turned` */
    bfloat16 *y;
    int together;
} Job;

AVX2 static void multiplied(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Matrix *matrix = job->matrix;
    size_t row = first * TOGETHER, end = last * TOGETHER < matrix->rows ? last * TOGETHER : matrix->rows;
    for (; job->together && row + TOGETHER <= end; row += TOGETHER) {
        float y[TOGETHER];
        rows_times(matrix->data + row * matrix->stride, matrix->stride, job->x, matrix->columns, y);
        for (size_t k = 0; k < TOGETHER; k++) job->y[row + k] = rounded(y[k]);
    }
    for (; row < end; row++)
        job->y[row] = rounded(row_times(matrix->data + row * matrix->stride, job->x, matrix->columns));
}

EXPORT void zamba_compat_rows(const Team *team, const Matrix *matrix, const bfloat16 *x, float *room, bfloat16 *y) {
    Job job = {matrix, room, y, team->together};
    turned(x, matrix->columns, room);
    spread(team, multiplied, &job, groups_of(matrix->rows));
}
#endif
