"""Small Zamba2 and Zamba (v1) checkpoints in every layout they come in, with the right answers.

Configs and weights are made in weights.py, and are to be had here too.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.reference import forward, hybrid_layers
from support.weights import (
    PATTERNS,
    PUBLISHED,
    UNPUBLISHED,
    ZAMBA1,
    Config,
    State,
    block_uses,
    generator,
    make_config,
    make_state,
)

__all__ = [
    "PATTERNS",
    "PUBLISHED",
    "UNPUBLISHED",
    "ZAMBA1",
    "Case",
    "Config",
    "State",
    "block_uses",
    "case",
    "drop",
    "forward",
    "hybrid_layers",
    "make_config",
    "make_ids",
    "make_state",
    "to_divergent",
    "to_expanded",
    "to_partial",
    "to_untied",
    "write_checkpoint",
]

_BLOCK_KEY = re.compile(r"model\.layers\.(\d+)\.(shared_transf(?:ormer)?)\.(.+)")
_ADAPTER = re.compile(r"_adapter_list\.(\d+)\.")


def to_expanded(state: State, config: Config) -> State:
    """Every block, with all its adapters, at every layer that uses it; equal copies in separate memory."""
    hybrid = hybrid_layers(config)
    expanded: State = {}
    for key, tensor in state.items():
        match = _BLOCK_KEY.fullmatch(key)
        if match is None:
            expanded[key] = tensor
            continue
        first = hybrid.index(int(match[1]))
        for position in block_uses(config)[first]:
            expanded[f"model.layers.{hybrid[position]}.{match[2]}.{match[3]}"] = tensor.clone()
    return expanded


def to_divergent(state: State, config: Config, seed: int = 1, scale: float = 0.02) -> State:
    """Expanded, every copy but the first moved by noise of `scale` times the tensor's root mean square."""
    divergent = to_expanded(state, config)
    for key in divergent.keys() - state.keys():
        tensor = divergent[key].double()
        noise = torch.randn(tensor.shape, generator=generator(seed, key), dtype=torch.float64)
        divergent[key] = (tensor + scale * tensor.square().mean().sqrt() * noise).to(divergent[key].dtype)
    return divergent


def to_untied(expanded: State, config: Config) -> tuple[State, Config]:
    """The exact form of a divergent checkpoint: every position a block of its own, with just its adapter."""
    hybrid = hybrid_layers(config)
    kept = {}
    for key, tensor in expanded.items():
        block, adapter = _BLOCK_KEY.fullmatch(key), _ADAPTER.search(key)
        if not (block and adapter and hybrid[int(adapter[1])] != int(block[1])):
            kept[key] = tensor
    return kept, {**config, "num_mem_blocks": len(hybrid)}


def to_partial(state: State, config: Config, kind: Literal["later-layer", "split", "wrong-slots"]) -> State:
    """Every shared tensor once, but not where the hub layout has it.

    later-layer: at the last layer that uses the block. split: every other tensor there, the rest in place.
    wrong-slots: adapters at the first layer of the next block; their index still tells where they belong.
    Raises ValueError when the config leaves nothing to move.
    """
    uses, hybrid = block_uses(config), hybrid_layers(config)
    moved: State = {}
    for key, tensor in state.items():
        match = _BLOCK_KEY.fullmatch(key)
        if match is None:
            moved[key] = tensor
            continue
        block = hybrid.index(int(match[1]))
        position = block
        if kind == "wrong-slots":
            if _ADAPTER.search(key):
                position = (block + 1) % len(uses)
        elif kind == "later-layer" or len(moved) % 2:
            position = uses[block][-1]
        moved[f"model.layers.{hybrid[position]}.{match[2]}.{match[3]}"] = tensor
    if moved.keys() == state.keys():
        raise ValueError(f"layout {kind} is the hub layout for this config")
    return moved


def drop(state: State, *patterns: str) -> State:
    """Without the keys that match a shell pattern. Raises KeyError when a pattern matches none."""
    for pattern in patterns:
        if not fnmatch.filter(state, pattern):
            raise KeyError(pattern)
    return {key: t for key, t in state.items() if not any(fnmatch.fnmatchcase(key, p) for p in patterns)}


def write_checkpoint(
    directory: Path,
    state: State,
    config: Config,
    *,
    max_shard_size: int | None = None,
    index: bool | None = None,
    format: Literal["safetensors", "bin"] = "safetensors",
    generation_config: Config | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write config.json and the weights, as the published checkpoints have them; returns `directory`.

    max_shard_size: bytes of tensors per shard; None is one file. index: whether to write the index; None
    means where there are several shards. torch_dtype in the file is that of the tensors. metadata: of the
    header of each safetensors file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    _write_json(directory / "config.json", {**config, "torch_dtype": dtype})
    if generation_config is not None:
        _write_json(directory / "generation_config.json", generation_config)
    shards: list[State] = [{}]
    for key, tensor in state.items():
        full = max_shard_size is not None and _size([*shards[-1].values(), tensor]) > max_shard_size
        if full and shards[-1]:
            shards.append({})
        shards[-1][key] = tensor
    stem = "model" if format == "safetensors" else "pytorch_model"
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}.{format}" if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.{format}"
        if format == "safetensors":
            save_file({key: t.contiguous() for key, t in shard.items()}, directory / name, metadata or {"format": "pt"})
        else:
            torch.save(shard, directory / name)
        weight_map |= dict.fromkeys(shard, name)
    if index or (index is None and len(shards) > 1):
        content = {"metadata": {"total_size": _size(state.values())}, "weight_map": weight_map}
        _write_json(directory / f"{stem}.{format}.index.json", content)
    return directory


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Case(NamedTuple):
    """A model, an input and the right answer. ids: [1, length]; logits: float64, [1, length, vocab]."""

    config: Config
    state: State
    ids: Tensor
    logits: Tensor


def make_ids(config: Config, length: int, seed: int = 0, rows: int = 1) -> Tensor:
    """Random tokens, [rows, length], none of them a special one."""
    return torch.randint(3, config["vocab_size"], (rows, length), generator=generator(seed, "ids"))


def case(pattern: str, length: int = 40, seed: int = 0, full: bool = False, **overrides: Any) -> Case:
    """A model, an input and its reference logits, computed once per process.

    Every call returns copies. overrides: config entries with hashable values.
    """
    known = _case(pattern, length, seed, full, tuple(sorted(overrides.items())))
    return copy.deepcopy(known)


@cache
def _case(pattern: str, length: int, seed: int, full: bool, overrides: tuple[tuple[str, Any], ...]) -> Case:
    config = make_config(pattern, full=full, **dict(overrides))
    state = make_state(config, seed)
    ids = make_ids(config, length, seed)
    return Case(config, state, ids, forward(state, config, ids))
