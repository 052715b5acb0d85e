/* What the loops over a sequence are given. */
#ifndef ZAMBA_COMPAT_SCAN_H
#define ZAMBA_COMPAT_SCAN_H

#include "team.h"

/* Head h reads group h / (heads / groups); inner is heads * head_dim, a multiple of norm_group, and the convolution's
 * channels are inner + 2 * groups * d_state: x, B, C. */
typedef struct {
    size_t heads, head_dim, d_state, groups, taps, norm_group;
    const float *kernel; /* [taps, channels], the oldest input's first */
    const float *bias;   /* [channels], or null */
    const float *A, *D;  /* [heads], A negative */
    const float *norm;   /* [inner] */
    float epsilon;
} Mixer;

/* What is narrow is bfloat16, the rest float32. Strides are of tokens, in numbers. */
typedef struct {
    size_t tokens, xbc_stride, gate_stride, dt_stride;
    const void *xbc, *gate; /* [tokens, channels], [tokens, inner] */
    const void *earlier;    /* [channels, taps], the inputs before the first, or null */
    const float *dt;        /* [tokens, heads], after softplus and limits */
    float *state;           /* [heads, head_dim, d_state] */
    float *room;            /* as many as are asked for */
    void *out;              /* [tokens, inner] */
    int64_t narrow, goes_on; /* xbc, gate, earlier and out are; whether state has content */
} Sequence;

#define MOST_STATE 256

static inline size_t inner_of(const Mixer *mixer) { return mixer->heads * mixer->head_dim; }
static inline size_t width_of(const Mixer *mixer) { return 2 * mixer->groups * mixer->d_state; } /* of B and C */

#endif
