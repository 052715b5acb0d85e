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
    if len(x) > MOST_TOKENS:
        result = widened.by_parts(x, matrix.rows, lambda start, part: found.dequantize(matrix, start, part), bias)
    else:
        wide, sums = x.float().contiguous(), x.new_empty(len(x), matrix.rows, dtype=torch.float32)
        for token, place in zip(wide, sums, strict=True):
            found.product(matrix, token, place)
        result = (sums if bias is None else sums.add_(bias)).to(A.dtype)
    return result.view(*A.shape[:-1], matrix.rows)


def _fits(A: Tensor, state: Any, bias: Tensor | None) -> bool:
    """A plain tensor on a CPU without gradients. In float32 only where no weight would be rounded on the way."""
    given = [A] if bias is None else [A, bias]
    return (
        all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in given)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        and not torch.compiler.is_compiling()
        and (A.dtype in SHORT or A.dtype == state.dtype == torch.float32)
        and A.numel() > 0
        and len(state.shape) == 2
        and not getattr(state, "packing_format_for_cpu", False)  # another layout
        and A.shape[-1] == state.shape[1]
    )
