"""Products with 4-bit weights of bitsandbytes, as quantization left them, by loops of our own.

A few tokens are multiplied with the codes themselves; for more, some rows of the weight at a time are written out, in a
buffer that the caches hold, and multiplied there: in bfloat16 where the processor multiplies that, else in float32.
Scales and sums are float32. With the codes, and in float32, what comes out is rounded once: closer to the weights that
quantization meant than bitsandbytes' plain path, which rounds each weight first, and than its kernel for AVX512-BF16,
which rounds the code's numbers and the scales.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from . import amx, gemv, upcast
from .blocking import autocasts, is_unwatched
from .bnb_packed import is_packed
from .function_mode import SHORT
from .native.quantized import Loops, Quantized, loops, takes_avx512
from .workspace import buffers

_FEW = 2  # tokens; with AVX2 an 8448 x 2048 weight takes 0.8 to 1.2 ms for each, and 1.5 to be written out
# The same with AVX-512, by what multiplies a weight that is written out.
_WIDE = {"tiles": 12, "instructions": 40, "float32": 24}
_PART = 1 << 23  # numbers of a weight that are written out at a time; each time the tokens are read again


def most_tokens(dtype: torch.dtype, wide: bool) -> int:
    """How many tokens at once are multiplied with the codes, where that goes by AVX-512 or not; see `product`."""
    if dtype != torch.bfloat16 or not wide:
        return _FEW
    if gemv.has_tiles():
        return _WIDE["tiles"]
    return _WIDE["instructions" if upcast.has_instructions(dtype) else "float32"]


class _Running(threading.local):
    depth = 0


_running = _Running()


@contextmanager
def running() -> Iterator[None]:
    """Around a forward pass of a Zamba or Zamba2: other models' products are left to bitsandbytes."""
    _running.depth += 1
    try:
        yield
    finally:
        _running.depth -= 1


def is_running() -> bool:
    """Whether this thread is within a forward pass of a Zamba or Zamba2."""
    return _running.depth > 0


def takes(weight: Any) -> bool:
    """Whether `product` multiplies by the weight of a Linear4bit, whatever the number of tokens."""
    state = weight.quant_state
    return (
        weight.device.type == "cpu"
        and state.shape is not None
        and len(state.shape) == 2
        and state.blocksize % Quantized.CHUNK == state.shape[1] % state.blocksize == 0
        and not torch.compiler.is_compiling()
        and loops() is not None
    )


def product(A: Tensor, weight: Tensor, state: Any, bias: Tensor | None) -> Tensor | None:
    """A @ W.T + bias in the dtype of A; None where that has to be bitsandbytes' own.

    A: [..., K]. weight: in bitsandbytes' plain layout, `state` its quant state, of [N, K]. bias: [N].
    """
    found = loops()
    if found is None or not _fits(A, state, bias):
        return None
    try:
        matrix = Quantized(weight.data, state)
    except ValueError:
        return None
    x = A.detach().reshape(-1, A.shape[-1])
    wide = takes_avx512()
    few = len(x) <= most_tokens(x.dtype, wide)
    if few and x.dtype == torch.bfloat16 and bias is None:
        result, room = x.new_empty(len(x), matrix.rows), buffers.take("row", x, *x.shape, dtype=torch.float32)
        found.tokens(matrix, x.contiguous(), room, result)
    elif few and len(x) <= _FEW:
        floats, sums = x.float().contiguous(), x.new_empty(len(x), matrix.rows, dtype=torch.float32)
        for token, place in zip(floats, sums, strict=True):
            found.product(matrix, token, place)
        result = (sums if bias is None else sums.add_(bias)).to(A.dtype)
    elif wide and x.dtype == torch.bfloat16 and upcast.has_instructions(x.dtype):
        result = _by_parts(found, matrix, x, bias)
    else:
        result = upcast.by_parts(x, matrix.rows, lambda start, part: found.dequantize(matrix, start, part), bias)
    return result.view(*A.shape[:-1], matrix.rows)


def _by_parts(found: Loops, matrix: Quantized, x: Tensor, bias: Tensor | None) -> Tensor:
    """x [tokens, columns] by some rows of the weight at a time, all in bfloat16."""
    result = x.new_empty(len(x), matrix.rows)
    step = max(1, _PART // matrix.columns)
    for start in range(0, matrix.rows, step):
        some = slice(start, min(start + step, matrix.rows))
        part = buffers.take("unpacked", x, some.stop - start, matrix.columns)
        found.write(matrix, start, part)
        multiply(x, part, None if bias is None else bias[some], result[:, some])
    return result


def multiply(A: Tensor, part: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """A @ part.T + bias into `out`, the fastest way there is."""
    if amx.product(A, part, bias, out) is None:
        out.copy_(F.linear(A, part, bias))


def matrix_of(module: Any, x: Tensor) -> Quantized | None:
    """What bitsandbytes' Linear4bit multiplies by, where calling it with the like of x is that and nothing more."""
    state = getattr(module.weight, "quant_state", None)
    if (
        type(module).__name__ != "Linear4bit"
        or state is None
        or module.bias is not None
        or module.compute_dtype != x.dtype
        or is_packed(module.weight, state)
        or not is_unwatched(module)
        or autocasts()
        or loops() is None
        or not _suits(x, state, None)
    ):
        return None
    try:
        return Quantized(module.weight.data, state)
    except ValueError:
        return None


def _fits(A: Tensor, state: Any, bias: Tensor | None) -> bool:
    return _suits(A, state, bias) and A.numel() > 0 and A.shape[-1] == state.shape[1]


def _suits(A: Tensor, state: Any, bias: Tensor | None) -> bool:
    """Plain tensors on a CPU, without gradients."""
    given = [A] if bias is None else [A, bias]
    return (
        all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in given)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        and not torch.compiler.is_compiling()
        and A.dtype in (*SHORT, torch.float32)
        and len(state.shape) == 2
        and not getattr(state, "packing_format_for_cpu", False)  # another layout
    )
