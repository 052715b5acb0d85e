/* bfloat16 to float32 and back, as PyTorch does. */
#ifndef ZAMBA_COMPAT_BFLOAT16_H
#define ZAMBA_COMPAT_BFLOAT16_H

#include "export.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bfloat16;

INLINE float widened(bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest, ties to even; any NaN becomes 0x7fc0. */
INLINE bfloat16 rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bfloat16)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : even);
}

#endif
