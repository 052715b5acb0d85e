/* Matrices that bitsandbytes quantized to 4 bits. */
#ifndef ZAMBA_COMPAT_QUANTIZED_H
#define ZAMBA_COMPAT_QUANTIZED_H

#include "rows.h"

#define CHUNK 64    /* weights of a row: every block is a multiple of it */
#define SEGMENT 256 /* scales that are made at once; even */

/* A byte holds two weights, the first in its high nibble. Every `block` weights have a scale: scale[i], or where that is
 * null second_code[nested[i]] * second[i / second_block] + offset. block is a multiple of CHUNK and divides columns. */
struct Quantized {
    const uint8_t *data;  /* [rows, columns / 2] */
    const float *code;    /* [16] */
    const float *scale;   /* [rows * columns / block] */
    const uint8_t *nested;
    const float *second_code, *second;
    size_t second_block;
    float offset;
    size_t rows, columns, block;
};

/* The scales of blocks from `block` on, count of them; without a division for each. */
INLINE void scales_of(const Quantized *matrix, size_t block, size_t count, float *restrict out) {
    if (matrix->scale) {
        memcpy(out, matrix->scale + block, count * sizeof *out);
        return;
    }
    const uint8_t *nested = matrix->nested + block;
    const float *code = matrix->second_code, *second = matrix->second + block / matrix->second_block;
    for (size_t done = 0, end = matrix->second_block - block % matrix->second_block; done < count; second++) {
        for (end = least(end, count); done < end; done++) {
            float scaled = code[nested[done]] * *second;
            out[done] = scaled + matrix->offset;
        }
        end += matrix->second_block;
    }
}

/* A row's scales, one for each CHUNK, from number `begin` on, count of them. */
INLINE void chunk_scales(const Quantized *matrix, size_t row, size_t begin, size_t count, float *out) {
    size_t times = matrix->block / CHUNK, block = row * (matrix->columns / matrix->block) + begin / times;
    size_t end = times - begin % times;
    if (times == 1) {
        scales_of(matrix, block, count, out);
        return;
    }
    for (size_t done = 0; done < count; block++, end += times) {
        scales_of(matrix, block, 1, out + done);
        for (size_t from = done++; done < least(end, count); done++) out[done] = out[from];
    }
}

/* By AVX-512, see quantized512.c: x [tokens, columns] arranged, y or out [tokens, rows] of the rows from `first` to
 * `last`; some rows written out. Not to be called where zamba_compat_wide() is 0. */
EXPORT int zamba_compat_wide(void);
void zamba_compat_arranged_512(size_t columns, const float *wide, const bfloat16 *narrow, float *room);
void zamba_compat_multiplied_512(const Quantized *matrix, const float *x, size_t tokens, size_t first, size_t last,
                                 int together, float *y, bfloat16 *out);
void zamba_compat_written_512(const Quantized *matrix, size_t start, size_t count, bfloat16 *y);

#endif
