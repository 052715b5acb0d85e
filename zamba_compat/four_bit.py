"""Products with 4-bit weights of bitsandbytes on processors for which it has no kernel, by loops of our own.

A few tokens are multiplied with the codes themselves; for more, some rows of the weight at a time are written out in
float32, in a buffer that the caches hold, and multiplied there. Scales and sums are float32, what comes out is rounded
once: closer to the weights that quantization meant than bitsandbytes' plain path, which rounds each weight first.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from . import widened
from .blocked import autocasts, is_unwatched
from .buffers import buffers
from .linears import SHORT
from .native.quantized import Quantized, loops

# Tokens that are multiplied one by one. An 8448 x 2048 weight takes 0.8 to 1.2 ms per token, and 1.5 to be written out.
MOST_TOKENS = 2


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
    if len(x) <= MOST_TOKENS and x.dtype == torch.bfloat16 and bias is None:
        result, room = x.new_empty(len(x), matrix.rows), buffers.take("row", x, matrix.columns, dtype=torch.float32)
        x = x.contiguous()
        for i in range(len(x)):
            found.token(matrix, x[i], room, result[i])
    elif len(x) > MOST_TOKENS:
        result = widened.by_parts(x, matrix.rows, lambda start, part: found.dequantize(matrix, start, part), bias)
    else:
        wide, sums = x.float().contiguous(), x.new_empty(len(x), matrix.rows, dtype=torch.float32)
        for token, place in zip(wide, sums, strict=True):
            found.product(matrix, token, place)
        result = (sums if bias is None else sums.add_(bias)).to(A.dtype)
    return result.view(*A.shape[:-1], matrix.rows)


def matrix_of(module: Any, x: Tensor) -> Quantized | None:
    """What bitsandbytes' Linear4bit multiplies by, where calling it with the like of x is that and nothing more."""
    state = getattr(module.weight, "quant_state", None)
    if (
        type(module).__name__ != "Linear4bit"
        or state is None
        or module.bias is not None
        or module.compute_dtype != x.dtype
        or getattr(module, "support_avx512bf16_for_cpu", False)  # it packs its weight when it is called
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
    """A plain tensor on a CPU without gradients. In float32 only where no weight would be rounded on the way."""
    given = [A] if bias is None else [A, bias]
    return (
        all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in given)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        and not torch.compiler.is_compiling()
        and (A.dtype in SHORT or A.dtype == state.dtype == torch.float32)
        and len(state.shape) == 2
        and not getattr(state, "packing_format_for_cpu", False)  # another layout
    )
