/* What the loops for x86-64 with AVX2 share. */
#ifndef ZAMBA_COMPAT_AVX2_H
#define ZAMBA_COMPAT_AVX2_H

#include "bfloat16.h"

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))

static inline int has_avx2(void) { return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2"); }

AVX2 static inline float total(__m256 sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* 16 numbers as two vectors of 8, the even ones and the odd ones. */
AVX2 INLINE void halves(const bfloat16 *from, __m256 *even, __m256 *odd) {
    __m256i both = _mm256_loadu_si256((const __m256i *)from);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
}

/* As `rounded`, in the low halves of 32 bits. */
AVX2 INLINE __m256i rounded_eight(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff))), 16);
    __m256i none = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc0), none);
}

#endif
