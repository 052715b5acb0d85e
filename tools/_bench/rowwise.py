"""The merge that Zamba2-SLERP-Merge published, in our words: whole shards in memory, row by row, key by key.

For a matrix of rows a and b: sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b with w the angle between the rows, linear
where w < 1e-6; linear for vectors and for fewer than 16 numbers. All of it in float32, written in the base's dtype.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def curve(values: list[float], layer: int, layers: int) -> float:
    """A curve's value at a layer, linear between values that are spread evenly over the depth."""
    at = layer / (layers - 1) * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] * (1 - at + low) + values[high] * (at - low)


def t_of(key: str, layers: int) -> float:
    """The study's factor of a stored tensor: by the layer it is stored under, shared or not."""
    if not key.startswith("model.layers."):
        return 0.5
    layer, rest = key.split(".", 3)[2:]
    if "self_attn" in rest:
        return curve([0.3, 0.5, 0.7, 0.7, 0.5, 0.3], int(layer), layers)
    if "feed_forward" in rest:
        return curve([0.4, 0.6, 0.8, 0.8, 0.6, 0.4], int(layer), layers)
    return 0.75 if "mamba" in rest else 0.5


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Row-wise; see above. [rows, ...] x 2 -> [rows, ...]"""
    x, y = a.float(), b.float()
    if x.dim() < 2 or x.numel() < 16:
        return torch.lerp(x, y, t).to(a.dtype)
    rows, others = x.flatten(1), y.flatten(1)
    normalize = torch.nn.functional.normalize
    cosine = (normalize(rows, dim=1) * normalize(others, dim=1)).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    sine = torch.where(sine.abs() < 1e-8, torch.ones_like(sine), sine)
    mixed = torch.sin((1 - t) * angle) / sine * rows + torch.sin(t * angle) / sine * others
    parallel = angle.abs().flatten() < 1e-6
    if parallel.any():
        mixed[parallel] = ((1 - t) * rows + t * others)[parallel]
    return mixed.reshape(x.shape).to(a.dtype)


def merge(base: Path, other: Path, out: Path, factor: Callable[[str], float]) -> None:
    """Merge two checkpoints of the same shards."""
    out.mkdir(parents=True)
    weight_map = {}
    for file in sorted(base.glob("*.safetensors")):
        a, b = load_file(file), load_file(other / file.name)
        merged = {key: slerp(tensor, b[key], factor(key)) for key, tensor in a.items()}
        save_file(merged, out / file.name)
        weight_map |= dict.fromkeys(merged, file.name)
        del a, b, merged
    index = {"metadata": {"format": "pt"}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    shutil.copy2(base / "config.json", out)
