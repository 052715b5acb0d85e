/* 32 numbers at a time, in two registers of AVX-512. */
#ifndef ZAMBA_COMPAT_LANES_H
#define ZAMBA_COMPAT_LANES_H

#include "tiles.h"

typedef struct {
    __m512 low, high;
} Lanes;

AVX512 INLINE Lanes numbers(const float *from) {
    return (Lanes){_mm512_loadu_ps(from), _mm512_loadu_ps(from + TILE)};
}

AVX512 INLINE __m512 widened_sixteen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

AVX512 INLINE Lanes widened_lanes(const bfloat16 *from) {
    const __m256i *at = (const __m256i *)from;
    return (Lanes){widened_sixteen(_mm256_loadu_si256(at)), widened_sixteen(_mm256_loadu_si256(at + 1))};
}

/* Those of low before those of high. */
AVX512 INLINE __m512i rounded_lanes(Lanes x) { return (__m512i)_mm512_cvtne2ps_pbh(x.high, x.low); }

/* Each of low beside the one of high. */
AVX512 INLINE __m512i rounded_pairs(__m512 low, __m512 high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, rounded_lanes((Lanes){low, high}));
}

/* 2^n times the Taylor series of e^r, |r| <= log(2) / 2, to two units in the last place; NaN stays. */
AVX512 INLINE __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(87.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x); /* log(2), to 15 bits and the rest */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 sum = _mm512_set1_ps(1.0f / 720);
    const float factors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (size_t k = 0; k < 6; k++) sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(factors[k]));
    return _mm512_scalef_ps(sum, n);
}

/* The reciprocal to 14 bits, and Newton's step. */
AVX512 INLINE __m512 silu(__m512 x) {
    __m512 below = exponential(_mm512_sub_ps(_mm512_setzero_ps(), x));
    below = _mm512_add_ps(_mm512_set1_ps(1.0f), below);
    __m512 inverse = _mm512_rcp14_ps(below);
    inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(below, inverse, _mm512_set1_ps(2.0f)));
    return _mm512_mul_ps(x, inverse);
}

AVX512 INLINE Lanes activated(Lanes x) { return (Lanes){silu(x.low), silu(x.high)}; }

#endif
