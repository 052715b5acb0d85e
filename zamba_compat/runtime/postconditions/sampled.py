"""A row of a tensor that is held against the same row of one that is stored."""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253


def differs(held: Any, stored: Any, module: Any, attribute: str) -> bool:
    """Whether the middle row of a parameter is not what is stored: random weights and another tensor's differ there.

    Args:
        held: the parameter or buffer; [rows, ...] or a scalar.
        stored: a tensor, or a slice of a safetensors file.
        module: what holds it: tells weights that bitsandbytes quantized.
        attribute: the parameter's name in it.

    Returns:
        False too where nothing can be said: weights that are offloaded, or quantized in a way that is not known here.
    """
    if held.is_meta or type(held).__name__ not in ("Parameter", "Tensor", "Params4bit", "Int8Params"):
        return False
    shape = tuple(stored.shape if isinstance(stored, Tensor) else stored.get_shape())
    if not shape:
        return False
    row = (shape[0] - 1) // 2
    want = stored[row : row + 1]
    if attribute == "weight" and type(held).__name__ in ("Params4bit", "Int8Params"):
        if want.is_floating_point():
            got, tolerance = _dequantized(held, module, row, shape)
            return got is not None and not bool(((got - want.float()).abs() <= tolerance).all())
        if tuple(held.shape) != shape:
            return False
    elif tuple(held.shape) != shape:
        return True
    got = held.detach()[row : row + 1].cpu()
    if got.is_floating_point() != want.is_floating_point():
        return False
    want = want.to(got.dtype)
    return not (torch.equal(got, want) or bool(((got == want) | ((got != got) & (want != want))).all()))


def _dequantized(weight: Any, module: Any, row: int, shape: tuple[int, ...]) -> tuple[Tensor | None, Any]:
    """One row of what bitsandbytes quantized, and how far rounding may take each number from what was stored."""
    if type(weight).__name__ == "Int8Params":
        codes = getattr(weight, "CB", None)
        scales = getattr(weight, "SCB", None)
        if codes is None or scales is None:
            return None, 0
        scale = scales[row].float().cpu() / 127
        return codes[row : row + 1].float().cpu() * scale, scale * 0.6 + 1e-8  # rounded to 16 bits before
    from bitsandbytes.functional import dequantize_blockwise

    state = weight.quant_state
    columns = shape[-1]
    if state is None or columns % state.blocksize or weight.dtype != torch.uint8:
        return None, 0
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
    blocks = columns // state.blocksize
    scale = absmax[row * blocks : (row + 1) * blocks].float().cpu().repeat_interleave(state.blocksize)
    packed = weight.detach().reshape(-1)[row * columns // 2 : (row + 1) * columns // 2].cpu().long()
    codes = torch.stack((packed >> 4, packed & 15), 1).reshape(-1)
    table = state.code.float().cpu()
    gap = (table.sort().values.diff().max() / 2 + 0.02) * scale  # nested scales are rounded themselves
    return (table[codes] * scale)[None], gap
