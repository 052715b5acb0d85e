/* A bfloat16 matrix times a vector, at the speed of the memory.
 *
 * Loaded as kernels.c is. Written for x86-64 with AVX2: elsewhere zamba_compat_rows_kind() is 0 and nothing else here
 * may be called.
 */
#include "rows.h"

#if !defined(__x86_64__)
EXPORT int zamba_compat_rows_kind(void) { return 0; }
#else
EXPORT int zamba_compat_rows_kind(void) { return has_avx2(); }

typedef struct {
    const Matrix *matrix;
    const float *x; /* in the order of `turned` */
    bfloat16 *y;
} Job;

/* Row by row and without asking ahead: a single stream is what processors are quickest to foresee. */
AVX2 static void multiplied(void *given, size_t first, size_t last) {
    const Job *job = given;
    for (size_t row = first; row < last; row++)
        job->y[row] = rounded(row_times(job->matrix->data + row * job->matrix->stride, job->x, job->matrix->columns));
}

EXPORT void zamba_compat_rows(const Team *team, const Matrix *matrix, const bfloat16 *x, float *room, bfloat16 *y) {
    Job job = {matrix, room, y};
    turned(x, matrix->columns, room);
    spread(team, multiplied, &job, matrix->rows);
}
#endif
