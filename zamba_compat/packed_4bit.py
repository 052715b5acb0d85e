"""Products with the 4-bit weights that bitsandbytes' kernel for CPUs with AVX512-BF16 reads, and their layout.

Layouts of a weight of N rows and K columns, in bytes:
    plain   (N * K / 2, 1) in the quant storage's dtype: row by row, the even column in the high nibble.
    packed  (N', K / 2), N' = N rounded up to 32 by rows that dequantize to zero: for every 32 rows, for every pair of
            columns k and k + 1, 32 bytes; the low nibbles of the first two are row 0 at k and k + 1, their high nibbles
            row 16, and so on to rows 15 and 31.
"""

from __future__ import annotations

from typing import Any

ROWS = 32  # of one block of the kernel, which ends the process if it meets a smaller one
# For more tokens at once, unpacking and dequantizing the weight pays: the product after it takes two thirds to three
# quarters of the kernel's time. See docs/bitsandbytes-cpu.md.
MOST_TOKENS = 256
# With tile instructions that product takes a seventh, and the kernel, which has none, 0.28 ms per token and weight of
# 8512 x 2048: unpacking and dequantizing pays much earlier.
MOST_TOKENS_BESIDE_TILES = 64
# What is made on the way stays in the caches, and in memory that is used again: a whole weight at once takes four times
# as long to unpack and to dequantize.
_UNPACKED = 2**19  # bytes of half a block's rows
_DEQUANTIZED = 2**21  # elements


def most_tokens() -> int:
    """For how many tokens at once the kernel is faster than `product` on this processor."""
    from .one_row import has_tiles

    return MOST_TOKENS_BESIDE_TILES if has_tiles() else MOST_TOKENS


def packed_bytes(plain: Any) -> Any:
    """Reorder (N, K / 2) bytes of the plain layout into (N', K / 2) bytes of the packed one."""
    import torch

    rows, pairs = plain.shape
    plain = torch.nn.functional.pad(plain, (0, 0, 0, -rows % ROWS)).reshape(-1, 2, ROWS // 2, pairs)
    low, high = plain[:, 0], plain[:, 1]
    even = (high & 0xF0) | (low >> 4)
    odd = (high << 4) | (low & 0xF)
    return torch.stack((even, odd), -1).transpose(1, 2).reshape(-1, pairs)


def plain_bytes(packed: Any, rows: int) -> Any:
    """The inverse of `packed_bytes`; `rows` is N."""
    import torch

    pairs = packed.shape[1]
    blocks = packed.reshape(-1, pairs, ROWS // 2, 2)
    result = torch.empty(len(blocks), 2, ROWS // 2, pairs, dtype=torch.uint8, device=packed.device)
    step = max(1, _UNPACKED // (ROWS // 2 * pairs))
    for start in range(0, len(blocks), step):
        some = slice(start, start + step)
        even, odd = (column.contiguous() for column in blocks[some].transpose(1, 2).unbind(-1))
        torch.bitwise_or(even << 4, odd & 0xF, out=result[some, 0])
        torch.bitwise_or(even & 0xF0, odd >> 4, out=result[some, 1])
    return result.view(-1, pairs)[:rows]


def kernel_absmax(state: Any) -> Any:
    """absmax as the kernel reads it: (K / blocksize, N') in bfloat16."""
    import torch

    absmax = _absmax(state).T.to(torch.bfloat16)
    return torch.nn.functional.pad(absmax, (0, -state.shape[0] % ROWS)).contiguous()


def _absmax(state: Any) -> Any:
    """absmax in float32: (N, K / blocksize)."""
    from bitsandbytes.functional import dequantize_blockwise

    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    return absmax.float().reshape(state.shape[0], -1)


def product(A: Any, packed: Any, state: Any, bias: Any) -> Any:
    """A @ W.T + bias as bitsandbytes' plain path computes it, some rows of the weight at a time.

    A: (tokens, K). packed: (N', K / 2). state: the quant state of the weight, (N, K). bias: (N), or None.
    Returns (tokens, N) in the dtype of A.
    """
    import torch

    rows, columns = state.shape
    out, absmax = A.new_empty(len(A), rows), _absmax(state)
    step = max(1, _DEQUANTIZED // (columns * ROWS)) * ROWS
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        shape = [some.stop - start, columns]
        data = plain_bytes(packed[start : start + step], shape[0])
        part = torch.ops.bitsandbytes.dequantize_4bit.default(
            data.reshape(-1, 1), absmax[some].reshape(-1), state.blocksize, state.quant_type, shape, state.dtype
        )
        out[:, some] = torch.nn.functional.linear(A, part.to(A.dtype), None if bias is None else bias[some])
    return out
