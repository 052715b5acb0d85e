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
# For more tokens at once, writing the weights out for a product of PyTorch's or with tiles is faster than the kernel,
# which has no tiles: 0.35 ms per token and weight of 8512 x 2048. By whether the loop in C writes them, four times as
# fast as bitsandbytes and PyTorch, and whether there are tiles. See docs/bitsandbytes-cpu.md.
_MOST_TOKENS = {(True, True): 20, (True, False): 128, (False, True): 64, (False, False): 256}
# What is made on the way stays in the caches, and in memory that is used again: a whole weight at once takes them four
# times as long.
_UNPACKED = 2**19  # bytes of half a block's rows
_DEQUANTIZED = 2**21  # elements
_WRITTEN = 2**22  # the same by the loop in C, of which each part is multiplied by itself


def most_tokens() -> int:
    """For how many tokens at once the kernel is faster than `product` on this processor."""
    from .native.unpacked import loop
    from .one_row import has_tiles

    return _MOST_TOKENS[loop() is not None, has_tiles()]


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


def product(A: Any, packed: Any, state: Any, bias: Any) -> Any:
    """A @ W.T + bias as bitsandbytes' plain path computes it, some rows of the weight at a time.

    A: (tokens, K). packed: (N', K / 2). state: the quant state of the weight, (N, K). bias: (N), or None.
    Returns (tokens, N) in the dtype of A.
    """
    rows, columns = state.shape
    out, absmax, loop = A.new_empty(len(A), rows), _absmax(state), _loop(A)
    step = max(1, (_DEQUANTIZED if loop is None else _WRITTEN) // (columns * ROWS)) * ROWS
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        given = packed[start : start + step], state, absmax[some].contiguous()
        part = None if loop is None else _written(loop, *given)
        if part is None:
            part = _dequantized(*given).to(A.dtype)
        multiply(A, part, None if bias is None else bias[some], out[:, some])
    return out


def _dequantized(packed: Any, state: Any, absmax: Any) -> Any:
    """By bitsandbytes, in the dtype of `state`: (len(absmax), K)."""
    import torch

    shape = [len(absmax), state.shape[1]]
    data = plain_bytes(packed, shape[0]).reshape(-1, 1)
    return torch.ops.bitsandbytes.dequantize_4bit.default(
        data, absmax.reshape(-1), state.blocksize, state.quant_type, shape, state.dtype
    )


def _loop(A: Any) -> Any:
    """What writes weights out in the dtype of A, or None."""
    import torch

    from .native.unpacked import loop

    return loop() if A.dtype == torch.bfloat16 and not torch.compiler.is_compiling() else None


def _written(loop: Any, packed: Any, state: Any, absmax: Any) -> Any:
    """`_dequantized` in bfloat16, in a buffer; None where the loop does not take it."""
    import torch

    from .buffers import buffers
    from .native.unpacked import fits

    part = buffers.take("unpacked", absmax, len(absmax), state.shape[1], dtype=torch.bfloat16)
    if not fits(packed, state.code, absmax, part):
        return None
    loop.write(packed, state.code, absmax, part)
    return part


def multiply(A: Any, part: Any, bias: Any, out: Any) -> None:
    """A @ part.T + bias into `out`, the fastest way there is."""
    import torch

    from . import tiled

    if tiled.product(A, part, bias, out) is None:
        out.copy_(torch.nn.functional.linear(A, part, bias))
