"""Merges of small models by mergekit, and what they should give."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from support import synthetic
from support.synthetic import Config, State, block_uses, hybrid_layers

_SHARED = re.compile(r"model\.layers\.(\d+)\.shared_transformer\.(?:.*_adapter_list\.(\d+)\.)?")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def run(configuration: str | dict[str, Any], out: Path, **options: Any) -> State:
    """What mergekit writes for a configuration, read back."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    text = configuration if isinstance(configuration, str) else yaml.safe_dump(configuration)
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    run_merge(config, str(out), MergeOptions(quiet=True, **options), config_source=text)
    return read(out)


def read(directory: Path) -> State:
    """Every tensor of a checkpoint."""
    state: State = {}
    for file in directory.glob("*.safetensors"):
        state |= load_file(file)
    return state


def parents(pattern: str = "1.2B", dtype: torch.dtype = torch.bfloat16) -> tuple[Config, State, State]:
    """A small config of a pattern, and two models of it."""
    config = synthetic.make_config(pattern)
    return config, *(synthetic.make_state(config, seed=seed, dtype=dtype) for seed in (0, 1))


def write(
    folder: Path, config: Config, base: State, other: State, layouts: str = "hub hub", changes: Sequence[Config] = ()
) -> tuple[Path, Path]:
    """Both as checkpoints, each in its layout (hub, expanded) and with what its config has otherwise."""
    paths = folder / "base", folder / "other"
    for path, state, layout, own in zip(paths, (base, other), layouts.split(), changes or ({}, {}), strict=True):
        stored = synthetic.to_expanded(state, config) if layout == "expanded" else state
        synthetic.write_checkpoint(path, stored, {**config, **own})
    return paths


def slerp_of(base: Path, other: Path, layers: int, t: Any, **more: Any) -> dict[str, Any]:
    """A configuration as people write it."""
    sources = [{"model": str(path), "layer_range": [0, layers]} for path in (base, other)]
    words: dict[str, Any] = {"slices": [{"sources": sources}], "merge_method": "slerp", "base_model": str(base)}
    return {**words, "parameters": {"t": t}, **more}


def curve(values: Sequence[float], layer: int, layers: int) -> float:
    """A gradient at a layer: linear between values spread evenly from the first layer to the last."""
    at = layer / (layers - 1) * (len(values) - 1)
    low = min(int(at), len(values) - 2)
    return values[low] + (at - low) * (values[low + 1] - values[low])


def used_at(key: str, config: Config) -> list[int]:
    """The layers that a tensor of the hub layout takes part in; none outside the layers."""
    hybrid, shared = hybrid_layers(config), _SHARED.match(key)
    if shared is None:
        layer = _LAYER.match(key)
        return [int(layer[1])] if layer else []
    if shared[2] is not None:
        return [hybrid[int(shared[2])]]
    (uses,) = [uses for uses in block_uses(config) if hybrid[uses[0]] == int(shared[1])]
    return [hybrid[position] for position in uses]


def value(key: str, config: Config, at_layer: Callable[[str, int], float]) -> float:
    """The one rule: the mean over the layers that use the tensor; outside the layers, the value at the first."""
    layers = used_at(key, config) or [0]
    return sum(at_layer(key, layer) for layer in layers) / len(layers)


def slerp(t: float, a: Tensor, b: Tensor) -> Tensor:
    """In float64, of the tensors as vectors; linear where they are within 0.9995 of parallel."""
    x, y = a.double(), b.double()
    cosine = (x * y).sum() / (x.norm() * y.norm())
    if cosine.abs() > 0.9995:
        return (1 - t) * x + t * y
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)


def assert_merged(found: State, wanted: dict[str, Tensor]) -> None:
    """The same names, and every number within one rounding step of the dtype found, and of float32's arithmetic."""
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        step = torch.finfo(tensor.dtype).eps * wanted[key].abs() + 1e-6 * wanted[key].abs().max()
        assert ((tensor.double() - wanted[key]).abs() <= step).all(), key
