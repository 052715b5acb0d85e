"""The layout of 4-bit weights that bitsandbytes' kernel for CPUs with AVX512-BF16 reads.

Layouts of a weight of N rows and K columns, in bytes:
    plain   (N * K / 2, 1) in the quant storage's dtype: row by row, the even column in the high nibble.
    packed  (N', K / 2), N' = N rounded up to 32 by rows that dequantize to zero: for every 32 rows, for every pair of
            columns k and k + 1, 32 bytes; the low nibbles of the first two are row 0 at k and k + 1, their high nibbles
            row 16, and so on to rows 15 and 31.
"""

from __future__ import annotations

from typing import Any

ROWS = 32  # of one block of the kernel, which ends the process if it meets a smaller one
# What is made on the way stays in the caches: a whole weight at once takes four times as long.
_UNPACKED = 2**19  # bytes of half a block's rows


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


def is_packed(tensor: Any, state: Any) -> bool:
    """Whether a weight's tensor is in the packed layout, told by its shape; `state` is its quant state."""
    import torch

    if getattr(state, "cpu_plain", None) is None or tensor.dtype != torch.uint8:
        return False
    rows, columns = state.shape
    return tuple(tensor.shape) == (rows + -rows % ROWS, columns // 2)


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
