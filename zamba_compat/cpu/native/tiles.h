/* What the loops with the tile instructions of AMX share. */
#ifndef ZAMBA_COMPAT_TILES_H
#define ZAMBA_COMPAT_TILES_H

#include "bfloat16.h"

/* Since GCC 11 and Clang 12; asking for the permission is Linux' way. */
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define HAS_TILES 1
#endif
#endif

#ifdef HAS_TILES
#include <immintrin.h>

#define TILE 16         /* rows of a tile, each of 64 bytes */
#define BOTH (2 * TILE) /* rows, tokens and columns of what two tiles hold */

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))
/* The intrinsics of tiles do not tell GCC that they read memory. */
#define WRITTEN __asm__ volatile("" ::: "memory")

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Shape;

AVX512 static void begin(void) {
    Shape shape = {.palette = 1};
    for (size_t tile = 0; tile < 8; tile++) shape.bytes[tile] = 64, shape.rows[tile] = TILE;
    WRITTEN;
    _tile_loadconfig(&shape);
}

/* The sums of 2 x 2 tiles, rows of 16 numbers `stride` numbers apart, are in tiles 0 to 3; zeros unless `add`. */
AVX512 INLINE void opened(const float *sums, size_t stride, size_t right, size_t below, int add) {
    WRITTEN;
    if (add) {
        _tile_loadd(0, sums, 4 * stride);
        _tile_loadd(1, sums + right, 4 * stride);
        _tile_loadd(2, sums + below, 4 * stride);
        _tile_loadd(3, sums + below + right, 4 * stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

AVX512 INLINE void closed(float *sums, size_t stride, size_t right, size_t below) {
    _tile_stored(0, sums, 4 * stride);
    _tile_stored(1, sums + right, 4 * stride);
    _tile_stored(2, sums + below, 4 * stride);
    _tile_stored(3, sums + below + right, 4 * stride);
}

/* 16 x 16 numbers of 32 bits. */
AVX512 INLINE void transposed(__m512i *rows) {
    __m512i other[TILE];
    for (size_t i = 0; i < TILE; i += 2) {
        other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (size_t i = 0; i < TILE; i += 4)
        for (size_t k = 0; k < 2; k++) {
            rows[i + 2 * k] = _mm512_unpacklo_epi64(other[i + k], other[i + k + 2]);
            rows[i + 2 * k + 1] = _mm512_unpackhi_epi64(other[i + k], other[i + k + 2]);
        }
    for (size_t i = 0; i < 4; i++)
        for (size_t k = 0; k < TILE; k += 8) {
            other[i + k] = _mm512_shuffle_i32x4(rows[i + k], rows[i + k + 4], 0x88);
            other[i + k + 4] = _mm512_shuffle_i32x4(rows[i + k], rows[i + k + 4], 0xdd);
        }
    for (size_t i = 0; i < 8; i++) {
        rows[i] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0xdd);
    }
}
#endif

#endif
