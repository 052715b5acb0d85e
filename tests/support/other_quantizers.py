"""Checkpoints with the names, dtypes and headers of every quantizer's, and random bytes; none has to be installed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from support import synthetic
from support.weights import generator
from zamba_compat.layout.quant_state_names import base_of

FORMATS = {
    "nf4": ("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"),
    "int8": ("weight", "SCB", "weight_format"),
    "torchao": ("_weight_qdata", "_weight_scale", "_weight_zero_point"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"),
    "FP8 with blocks": ("weight", "weight_scale_inv"),
    "GPTQ": ("qweight", "qzeros", "scales", "g_idx"),
    "AWQ": ("qweight", "qzeros", "scales"),
    "HQQ": ("W_q", "nbits", "group_size", "scale", "zero", "shape"),
    "quanto": ("weight._data", "weight._scale", "input_scale", "output_scale"),
    "AQLM": ("codes", "codebooks", "scales"),
    "EETQ": ("weight", "weight_scales"),
}
METHODS = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "FP8 with blocks": "fp8"}
_FLOATS = ("scale", "scales", "SCB", "absmax", "quant_map", "zero", "codebooks")


def is_quantized(name: str, tensor: Tensor) -> bool:
    """Whether the generated checkpoints hold a plain checkpoint's tensor quantized: the matrices of the layers."""
    return tensor.ndim == 2 and "layers." in name and name.endswith(".weight")


def quantized(state: synthetic.State, format: str) -> synthetic.State:
    """As a plain state, its matrices in `format`; every part other bytes than any other."""
    found: synthetic.State = {}
    for name, tensor in state.items():
        if not is_quantized(name, tensor):
            found[name] = tensor
            continue
        for part in FORMATS[format]:
            stored = f"{name.removesuffix('weight')}{part}"
            found[stored] = _part(stored, part, tensor.shape, format)
    return found


def header(names: Iterable[str], format: str) -> dict[str, str]:
    """The metadata of its files: of torchao the type of every tensor by its name."""
    if format != "torchao":
        return {"format": "pt"}
    types = {
        base_of(name): {"_type": "Int8Tensor", "_data": {"block_size": [1, len(name)]}}
        if base_of(name) != name
        else {"_type": "Tensor"}
        for name in names
    }
    return {
        "format": "pt",
        "tensor_names": json.dumps(list(types)),
        **{name: json.dumps(kind) for name, kind in types.items()},
    }


def write(
    directory: Path, state: synthetic.State, config: synthetic.Config, format: str, max_shard_size: int | None = None
) -> Path:
    """A checkpoint in `format`, its quantization_config that of no real model."""
    words = {"quant_method": METHODS.get(format, format.lower()), "bits": 4, "ignore": ["lm_head"]}
    config = {**config, "quantization_config": words}
    return synthetic.write_checkpoint(
        directory, state, config, max_shard_size=max_shard_size, metadata=header(state, format)
    )


def _part(name: str, part: str, shape: torch.Size, format: str) -> Tensor:
    rows, columns = shape
    if part == "weight":
        shapes = {"nf4": ((rows * columns + 1) // 2, 1), "EETQ": (columns, rows)}
        data = torch.randint(0, 120, shapes.get(format, (rows, columns)), generator=generator(0, name))
        kinds = {"nf4": torch.uint8, "FP8 with blocks": torch.float8_e4m3fn}
        return data.to(kinds.get(format, torch.int8))
    kind = torch.float32 if part.rpartition(".")[2].rpartition("_")[2] in _FLOATS else torch.int32
    return torch.randint(0, 2**20, (3, 2), generator=generator(0, name)).to(kind)
