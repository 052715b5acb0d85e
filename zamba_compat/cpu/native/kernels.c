/* Loops over bfloat16 tensors that PyTorch runs as several passes through memory, each as one pass.
 *
 * A plain shared library, without Python's own headers; zamba_compat/cpu/native/__init__.py loads it. Compiled where the
 * package is installed and a C compiler is at hand, and used where the processor has what it was written for; anything
 * else takes PyTorch's operations, which compute the same. Every function is pure and may run in several threads.
 */
#include "bfloat16.h"

#include <math.h>

/* What the loops are vectorized for. Each function is compiled once per kind and the kind is chosen when it is called:
 * the library may have been built on another machine. Kinds are numbered as in __init__.py. */
#if defined(__x86_64__)
#define KINDS 2
#define KIND_2 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define KIND_1 __attribute__((target("avx2,fma")))
static int kind(void) {
    if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx2")) return 0;
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               ? 2 : 1;
}
#elif defined(__aarch64__)
#define KINDS 1
#define KIND_1
static int kind(void) { return 3; }
#else
#error "no processor that these loops were written for"
#endif

#define LANES 32 /* partial sums of a dot product: independent, and a whole number of vectors of every kind */
#define STEP 4096 /* elements whose products are added in float32 before they are in float64 */

/* out = first * a + second * b, the product with a rounded to float32 before the other is added to it. */
INLINE void add(bfloat16 *restrict out, const bfloat16 *restrict a, const bfloat16 *restrict b, float first,
                float second, size_t count) {
    for (size_t i = 0; i < count; i++) out[i] = rounded(__builtin_fmaf(widened(b[i]), second, widened(a[i]) * first));
}

/* a a, a b and b b, added to sums. */
INLINE void multiply(const bfloat16 *restrict a, const bfloat16 *restrict b, size_t count, double *sums) {
    for (size_t at = 0; at < count; at += STEP) {
        size_t end = count - at < STEP ? count : at + STEP, i = at;
        float aa[LANES] = {0}, ab[LANES] = {0}, bb[LANES] = {0};
        for (; i + LANES <= end; i += LANES) {
            for (int k = 0; k < LANES; k++) {
                float x = widened(a[i + k]), y = widened(b[i + k]);
                aa[k] = __builtin_fmaf(x, x, aa[k]);
                ab[k] = __builtin_fmaf(x, y, ab[k]);
                bb[k] = __builtin_fmaf(y, y, bb[k]);
            }
        }
        for (int k = 0; i < end; i++, k++) {
            float x = widened(a[i]), y = widened(b[i]);
            aa[k] += x * x;
            ab[k] += x * y;
            bb[k] += y * y;
        }
        for (int k = 0; k < LANES; k++) {
            sums[0] += aa[k];
            sums[1] += ab[k];
            sums[2] += bb[k];
        }
    }
}

/* Each row of a to that of b; how is 1 - t, t and the three limits; see blocks.slerped_rows. */
INLINE void slerp_rows(bfloat16 *restrict out, const bfloat16 *restrict a, const bfloat16 *restrict b, size_t rows,
                       size_t width, double t, int64_t *told) {
    const double zero = 1e-12, parallel = 1e-6, opposite = 3.14159265358979323846 - 1e-6;
    for (size_t row = 0; row < rows; row++, a += width, b += width, out += width) {
        double sums[3] = {0};
        multiply(a, b, width, sums);
        double first = sqrt(sums[0]), second = sqrt(sums[2]);
        told[0] += first <= zero || second <= zero;
        double cosine = sums[1] / ((first < zero ? zero : first) * (second < zero ? zero : second));
        double angle = acos(cosine > 1 ? 1 : cosine < -1 ? -1 : cosine);
        if (angle < parallel || angle > opposite) {
            told[1]++;
            add(out, a, b, (float)(1 - t), (float)t, width);
        } else {
            double sine = sin(angle);
            add(out, a, b, (float)(sin((1 - t) * angle) / sine), (float)(sin(t * angle) / sine), width);
        }
    }
}

#define DEFINED(KIND, NUMBER)                                                                                          \
    KIND static void add_##NUMBER(void *out, const void *a, const void *b, float first, float second, size_t count) {  \
        add(out, a, b, first, second, count);                                                                          \
    }                                                                                                                  \
    KIND static void multiply_##NUMBER(const void *a, const void *b, size_t count, double *sums) {                     \
        multiply(a, b, count, sums);                                                                                   \
    }                                                                                                                  \
    KIND static void slerp_rows_##NUMBER(void *out, const void *a, const void *b, size_t rows, size_t width, double t, \
                                         int64_t *told) {                                                              \
        slerp_rows(out, a, b, rows, width, t, told);                                                                   \
    }

DEFINED(KIND_1, 1)
#if KINDS == 2
DEFINED(KIND_2, 2)
#define CHOSEN(NAME, ...) (kind() == 2 ? NAME##_2(__VA_ARGS__) : NAME##_1(__VA_ARGS__))
#else
#define CHOSEN(NAME, ...) NAME##_1(__VA_ARGS__)
#endif

/* See __init__.py: counted up when a function changes. */
EXPORT int zamba_compat_version(void) { return 14; }

/* 0 where nothing else here may be called. */
EXPORT int zamba_compat_kind(void) { return kind(); }

EXPORT void zamba_compat_add(void *out, const void *a, const void *b, float first, float second, size_t count) {
    CHOSEN(add, out, a, b, first, second, count);
}

EXPORT void zamba_compat_multiply(const void *a, const void *b, size_t count, double *sums) {
    CHOSEN(multiply, a, b, count, sums);
}

EXPORT void zamba_compat_slerp_rows(void *out, const void *a, const void *b, size_t rows, size_t width, double t,
                                    int64_t *told) {
    CHOSEN(slerp_rows, out, a, b, rows, width, t, told);
}
