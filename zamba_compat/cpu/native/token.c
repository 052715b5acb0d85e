/* One token through a Mamba2 mixer: everything between its projections, in one pass over the state.
 *
 * Loaded as kernels.c is. What mixer_torch.py computes for a sequence of one, with the same roundings but for the
 * order of sums.
 */
#include "rows.h"

#include <math.h>

#if defined(__x86_64__)
#define VECTORS __attribute__((target("avx2,fma")))
EXPORT int zamba_compat_token_kind(void) { return has_avx2(); }
#else
#define VECTORS
EXPORT int zamba_compat_token_kind(void) { return 1; }
#endif

#define LANES 32 /* partial sums of a dot product */

/* Of float32, or of bfloat16 where narrow. */
typedef struct {
    const void *data;
    int64_t narrow;
} Numbers;

/* A mixer's weights. Head h reads group h / (heads / groups); inner is heads * head_dim and the convolution's channels
 * are inner + 2 * groups * d_state: x, B, C. Without a norm y is left in room, ungated. */
typedef struct {
    size_t heads, head_dim, d_state, groups, taps, norm_group;
    Numbers kernel;             /* [channels, taps], the oldest input's first */
    Numbers bias;               /* [channels], or null */
    Numbers dt_bias, A_log, D;  /* [heads] */
    Numbers norm;               /* [inner], or null */
    float epsilon, least, most; /* of the norm; the limits of dt */
} Mixer;

/* A row's token and what it changes. */
typedef struct {
    Numbers gate, xbc, dt; /* [inner], [channels], [heads] */
    const void *earlier;   /* [channels, taps], as xbc; the oldest counts no more */
    void *later;           /* the same, moved on; may be `earlier` */
    float *state;          /* [heads, head_dim, d_state] */
    float *room;           /* [channels]: x, which becomes y, B and C after the convolution */
    void *out;             /* [inner], as gate */
} Token;

typedef struct {
    const Mixer *mixer;
    const Token *token;
} Job;

INLINE float at(Numbers numbers, size_t i) {
    return numbers.narrow ? widened(((const bfloat16 *)numbers.data)[i]) : ((const float *)numbers.data)[i];
}

INLINE float silu(float x) { return x / (1.0f + expf(-x)); }

/* PyTorch's, with its threshold. */
INLINE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

INLINE void moved_on(const Mixer *mixer, const Token *token, size_t channel) {
    size_t taps = mixer->taps, place = channel * taps;
    if (token->xbc.narrow) {
        const bfloat16 *from = (const bfloat16 *)token->earlier + place;
        bfloat16 *to = (bfloat16 *)token->later + place;
        for (size_t k = 1; k < taps; k++) to[k - 1] = from[k];
        to[taps - 1] = ((const bfloat16 *)token->xbc.data)[channel];
    } else {
        const float *from = (const float *)token->earlier + place;
        float *to = (float *)token->later + place;
        for (size_t k = 1; k < taps; k++) to[k - 1] = from[k];
        to[taps - 1] = ((const float *)token->xbc.data)[channel];
    }
}

/* The convolution of some channels, activated, into room. */
INLINE void convolved(const Mixer *mixer, const Token *token, size_t first, size_t last) {
    Numbers inputs = {token->later, token->xbc.narrow};
    for (size_t channel = first; channel < last; channel++) {
        moved_on(mixer, token, channel);
        float sum = 0;
        for (size_t i = channel * mixer->taps; i < (channel + 1) * mixer->taps; i++)
            sum += at(inputs, i) * at(mixer->kernel, i);
        if (mixer->bias.data) sum += at(mixer->bias, channel);
        token->room[channel] = silu(sum);
    }
}

/* state = state * decay + x * B for one row of a head's state; returns its product with C. */
INLINE float stepped(float *restrict state, const float *restrict B, const float *restrict C, float decay, float x,
                     size_t d_state) {
    float sums[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= d_state; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            float value = state[i + lane] * decay + x * B[i + lane];
            state[i + lane] = value;
            sums[lane] += value * C[i + lane];
        }
    for (; i < d_state; i++) {
        float value = state[i] * decay + x * B[i];
        state[i] = value;
        sums[i % LANES] += value * C[i];
    }
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

VECTORS static void some_heads(void *given, size_t first, size_t last) {
    const Job *job = given;
    const Mixer *mixer = job->mixer;
    const Token *token = job->token;
    size_t head_dim = mixer->head_dim, d_state = mixer->d_state, inner = mixer->heads * head_dim;
    for (size_t head = first; head < last; head++) {
        size_t group = head / (mixer->heads / mixer->groups);
        const float *B = token->room + inner + group * d_state, *C = B + mixer->groups * d_state;
        float *y = token->room + head * head_dim, *state = token->state + head * head_dim * d_state;
        convolved(mixer, token, head * head_dim, (head + 1) * head_dim);
        float dt = softplus(at(token->dt, head) + at(mixer->dt_bias, head));
        dt = dt < mixer->least ? mixer->least : dt > mixer->most ? mixer->most : dt; /* NaN stays */
        float decay = expf(dt * -expf(at(mixer->A_log, head))), D = at(mixer->D, head);
        for (size_t row = 0; row < head_dim; row++) {
            float x = y[row];
            y[row] = stepped(state + row * d_state, B, C, decay, x * dt, d_state) + x * D;
        }
        if (mixer->norm.data)
            for (size_t row = 0; row < head_dim; row++) y[row] *= silu(at(token->gate, head * head_dim + row));
    }
}

VECTORS static void normed(const Mixer *mixer, const Token *token) {
    size_t inner = mixer->heads * mixer->head_dim;
    for (size_t start = 0; start < inner; start += mixer->norm_group) {
        const float *y = token->room + start;
        float sums[LANES] = {0}, sum = 0;
        for (size_t i = 0; i < mixer->norm_group; i++) sums[i % LANES] += y[i] * y[i];
        for (size_t lane = 0; lane < LANES; lane++) sum += sums[lane];
        float scale = 1.0f / sqrtf(sum / (float)mixer->norm_group + mixer->epsilon);
        for (size_t i = 0; i < mixer->norm_group; i++) {
            float value = y[i] * scale * at(mixer->norm, start + i);
            if (token->gate.narrow)
                ((bfloat16 *)token->out)[start + i] = rounded(value);
            else
                ((float *)token->out)[start + i] = value;
        }
    }
}

/* The tokens of a batch, one of every row. */
EXPORT void zamba_compat_token(const Team *team, const Mixer *mixer, const Token *tokens, size_t rows) {
    size_t inner = mixer->heads * mixer->head_dim;
    for (size_t row = 0; row < rows; row++) {
        Job job = {mixer, tokens + row};
        convolved(mixer, tokens + row, inner, inner + 2 * mixer->groups * mixer->d_state);
        spread(team, some_heads, &job, mixer->heads);
        if (mixer->norm.data) normed(mixer, tokens + row);
    }
}

#if defined(__x86_64__)
/* One of the two, the other null. */
typedef struct {
    const Matrix *plain;
    const Quantized *quantized;
    size_t rows, columns;
} Projection;

static void projected(const Team *team, const Projection *by, const bfloat16 *x, float *room, bfloat16 *y) {
    if (by->plain)
        zamba_compat_rows(team, by->plain, x, room, y);
    else
        zamba_compat_quantized_tokens(team, by->quantized, 1, x, room, y);
}

/* A token of one row in bfloat16 with both projections around it: y of x, by in_proj, what is above, and out_proj.
 * room: float32 for the longer of their columns, then for the channels; then bfloat16 for the rows of in_proj, then for
 * the columns of out_proj. */
EXPORT void zamba_compat_mixer(const Team *team, const Mixer *mixer, const Projection *in_proj,
                               const Projection *out_proj, const bfloat16 *x, const void *earlier, void *later,
                               float *state, float *room, bfloat16 *y) {
    size_t inner = out_proj->columns, channels = inner + 2 * mixer->groups * mixer->d_state;
    float *wide = room, *convolved = wide + (inner > in_proj->columns ? inner : in_proj->columns);
    bfloat16 *between = (bfloat16 *)(convolved + channels), *normed = between + in_proj->rows;
    projected(team, in_proj, x, wide, between);
    Numbers gate = {between, 1}, xbc = {between + inner, 1}, dt = {between + inner + channels, 1};
    Token token = {gate, xbc, dt, earlier, later, state, convolved, normed};
    zamba_compat_token(team, mixer, &token, 1);
    projected(team, out_proj, normed, wide, y);
}
#endif
