/* How work is spread over PyTorch's own threads. */
#ifndef ZAMBA_COMPAT_TEAM_H
#define ZAMBA_COMPAT_TEAM_H

#include "export.h"

/* GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the OpenMP library that PyTorch runs on: threads of our
 * own would meet its threads, which wait for work by spinning, on the same processors. It may give fewer than asked. */
typedef struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*number)(void), (*given)(void);
    int threads;
    int together; /* whether the rows of a matrix are read several at once, see rows.h */
    int wide;     /* whether AVX-512 is taken where there is a loop with and without */
} Team;

typedef void (*Work)(void *job, size_t first, size_t last);
typedef struct {
    Work work;
    void *job;
    size_t count;
    const Team *team;
} Share;

static void share(void *job) {
    const Share *of = (const Share *)job;
    size_t number = (size_t)of->team->number(), threads = (size_t)of->team->given();
    size_t first = of->count * number / threads, last = of->count * (number + 1) / threads;
    if (first < last) of->work(of->job, first, last);
}

static inline void spread(const Team *team, Work work, void *job, size_t count) {
    if (team->threads < 2) {
        work(job, 0, count);
        return;
    }
    Share of = {work, job, count, team};
    team->parallel(share, &of, (unsigned)team->threads, 0);
}

#endif
