"""The weights that a checkpoint in compressed-tensors' format stands for, without the library.

A word of weight_packed holds 32 / bits integers, the first one lowest, each raised by 2 ** (bits - 1); zero points are
packed likewise, down the rows. weight = (integer - zero point) * scale of its group of columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from support.weights import State

PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def dequantized_state(stored: State) -> State:
    """Every weight in float64 where it was quantized, as stored where not."""
    state: State = {}
    for name, tensor in stored.items():
        module, _, end = name.rpartition(".")
        if end == "weight_packed" or (end == "weight" and f"{module}.weight_scale" in stored):
            parts = {part: stored[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in stored}
            state[f"{module}.weight"] = dequantized(parts | {end: tensor})
        elif end not in PARTS:
            state[name] = tensor
    return state


def dequantized(parts: State) -> Tensor:
    """One weight, float64."""
    scale = parts["weight_scale"].double()
    if "weight_packed" not in parts:
        return parts["weight"].double() * scale
    rows, columns = parts["weight_shape"].tolist()
    bits = 4 if parts["weight_packed"].shape[1] == -(-columns * 4 // 32) else 8
    codes = unpacked(parts["weight_packed"], bits)[:, :columns]
    zero = torch.zeros(scale.shape, dtype=torch.int64)
    if "weight_zero_point" in parts:
        zero = unpacked(parts["weight_zero_point"].T, bits)[:, :rows].T
    groups = (codes.reshape(rows, scale.shape[1], -1) - zero[..., None]).double() * scale[..., None]
    return groups.reshape(rows, columns)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """[rows, words] -> [rows, words * 32 / bits], as int64."""
    shifts = torch.arange(0, 32, bits)
    fields = (words.long()[..., None] >> shifts) & (2**bits - 1)
    return fields.flatten(1) - 2 ** (bits - 1)
