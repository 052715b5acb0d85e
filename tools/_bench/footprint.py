"""Bytes that a quantized model holds, and those it cannot do without."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

BLOCK = 64  # weights per absmax
NESTED_BLOCK = 256  # absmax values per absmax of their own, with double quantization


def linear_bytes(count: int) -> int:
    """A linear of `count` weights in 4 bits with double quantization: weights, absmax, and absmax of the absmax."""
    blocks = math.ceil(count / BLOCK)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / NESTED_BLOCK)


def quantized_bytes(shapes: Mapping[str, tuple[int, ...]], *, shared_in_16_bits: bool = False) -> int:
    """A checkpoint with the linears of its layers in NF4, double quantization, and the rest in 16 bits.

    Args:
        shapes: of every tensor of the hub layout.
        shared_in_16_bits: leave out the shared blocks, as stock transformers does.
    """
    total = 0
    for key, shape in shapes.items():
        count = math.prod(shape)
        linear = len(shape) == 2 and "layers." in key
        kept = shared_in_16_bits and ".shared_transformer." in key
        total += linear_bytes(count) if linear and not kept else 2 * count
    return total


def held_bytes(model: nn.Module) -> int:
    """Bytes in distinct storages of parameters, buffers and quant states."""
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if (quant_state := getattr(weight, "quant_state", None)) is not None:
            tensors += [quant_state.absmax, quant_state.code]
            if getattr(quant_state, "cpu_absmax", None) is not None:  # beside a packed weight
                tensors.append(quant_state.cpu_absmax)
            if quant_state.nested:
                tensors += [quant_state.state2.absmax, quant_state.state2.code, quant_state.offset]
        for holder in (weight, getattr(module, "state", None)):
            tensors += [getattr(holder, name) for name in ("CB", "SCB") if getattr(holder, name, None) is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
