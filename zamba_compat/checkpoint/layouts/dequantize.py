"""The values of a linear weight that bitsandbytes quantized, in plain torch.

4 bits: each byte holds two codes, the high half first; weight = quant_map[code] * absmax of its run of blocksize
elements. Doubly quantized, absmax = nested_quant_map[absmax] * nested_absmax of its run of nested_blocksize, plus
nested_offset. 8 bits: weight = int8 * SCB of its row / 127.
Source: bitsandbytes.functional (QuantState.as_dict, dequantize_4bit, int8_vectorwise_dequant).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError
from zamba_compat.layout.quant_state_names import BITSANDBYTES, format_of

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "quant_state.bitsandbytes__"


def method_of(parts: Mapping[str, object]) -> str:
    """ "nf4", "fp4" or "int8", from the parts of one weight; "unknown" when they are neither's."""
    kind = next((part.removeprefix(_STATE) for part in parts if part.startswith(_STATE)), None)
    return kind or ("int8" if "SCB" in parts else "unknown")


def dequantize(weight: Tensor, parts: Mapping[str, Tensor], *, where: str) -> Tensor:
    """The weight in float32, in the shape it had.

    Args:
        weight: as stored: packed bytes of any shape, or int8 [rows, columns].
        parts: `quant_state_names.part_of` the name -> tensor.
        where: its name, for errors.

    Raises:
        CheckpointError: parts that are missing or do not fit each other.
    """
    if format_of(parts) not in (*BITSANDBYTES, "unknown"):
        raise CheckpointError(
            f"It is stored in the format of {format_of(parts)}, whose values are not read here.",
            where=where,
            remedy="Compare unquantized checkpoints, or leave the components out that are quantized.",
        )
    try:
        return _int8(weight, parts) if method_of(parts) == "int8" else _4bit(weight, parts)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"Its quant state does not fit it: {type(error).__name__} {error}.",
            where=where,
            remedy="Quantize the unquantized checkpoint again.",
        ) from error


def _int8(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    stored = int(parts["weight_format"].item()) if "weight_format" in parts else 0
    if stored != 0 or weight.dim() != 2:
        raise ValueError(f"weight_format {stored}, shape {list(weight.shape)}")  # layouts of old CUDA kernels
    return weight.float() * (parts["SCB"].float().view(-1, 1) / 127)


def _4bit(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    import torch

    state: dict[str, Any] = json.loads(bytes(parts[_STATE + method_of(parts)].tolist()))
    shape, size = [int(n) for n in state["shape"]], int(state["blocksize"])
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        scale = _per_element(parts["nested_absmax"].float(), int(state["nested_blocksize"]), absmax.numel())
        absmax = parts["nested_quant_map"].float()[absmax.view(-1).long()] * scale + float(state["nested_offset"])
    count = math.prod(shape)
    packed = weight.contiguous().view(-1).view(torch.uint8)  # any dtype may store the bytes
    if packed.numel() != (count + 1) // 2:
        raise ValueError(f"{packed.numel()} bytes for {count} elements")
    # A byte at a time makes two values: look both up at once.
    values = parts["quant_map"].float()
    pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], 1)  # [256, 2], the high half first
    out = pairs.index_select(0, packed.int()).view(-1)[:count]
    full = count // size * size
    scale = absmax.view(-1).float()
    if scale.numel() != math.ceil(count / size):
        raise ValueError(f"{scale.numel()} values of absmax for {count} elements in blocks of {size}")
    out[:full].view(-1, size).mul_(scale[: full // size, None])
    out[full:].mul_(scale[full // size :].repeat(count - full)[: count - full])
    return out.view(shape)


def _per_element(scale: Tensor, size: int, count: int) -> Tensor:
    return scale.view(-1).repeat_interleave(size)[:count]
