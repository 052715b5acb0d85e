"""A place to break a checkpoint in: a good one of three shards, its manifest, and ways to change it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from support import synthetic
from support.raw_files import with_header
from support.synthetic import Config, State
from zamba_compat.operations.convert import Options, convert

CONFIG = synthetic.make_config("7B", hidden_size=32, n_mamba_heads=4, vocab_size=16, adapter_rank=2)
STEM = "model.layers.{}.shared_transformer."
Q = f"{STEM}self_attn.q_proj.weight"
OWN = "model.layers.0.mamba.D"
NORM = f"{STEM.format(2)}input_layernorm.weight"
ADAPTER = f"{STEM.format(3)}feed_forward.gate_up_proj_adapter_list.3.1.weight"
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))


@cache
def state() -> State:
    """The tensors of the good checkpoint, hub layout, bfloat16. Not to be changed."""
    return synthetic.make_state(CONFIG, dtype=torch.bfloat16)


@dataclass
class Arena:
    """One case: a checkpoint and a destination in a directory of their own.

    Attributes:
        top: the directory that holds all of it.
        source: the checkpoint that is broken.
        destination: where commands write.
        other: a good checkpoint, for commands that read two.
        during: what is done to the world while a command runs.
        arguments: command -> more arguments for it.
        absent: what must not exist after the command: what hostile code would have made.
        merge: entries of merge's configuration to replace.
        yaml: the configuration itself.
        method: of "quantize --method".
    """

    top: Path
    during: Callable[[], AbstractContextManager[object]] = nullcontext
    arguments: dict[str, list[str]] = field(default_factory=dict)
    absent: list[Path] = field(default_factory=list)
    merge: dict[str, Any] = field(default_factory=dict)
    yaml: str = ""
    method: str = "w4a16"

    @property
    def source(self) -> Path:
        return self.top / "source"

    @property
    def destination(self) -> Path:
        return self.top / "made"

    @property
    def other(self) -> Path:
        return self.top / "other"

    @property
    def index(self) -> Path:
        return self.source / INDEX

    @property
    def shard(self) -> Path:
        return self.source / SHARDS[1]

    def change_json(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the index or the config in place."""
        content = json.loads((self.source / name).read_text())
        change(content)
        (self.source / name).write_text(json.dumps(content))

    def change_header(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the header of the second shard; the bytes of its tensors stay."""
        data = self.shard.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        self.shard.write_bytes(with_header(header, data[8 + length :]))

    def rewrite(self, tensors: Mapping[str, torch.Tensor], config: Config | None = None) -> None:
        """Other tensors or another config under the manifest of the good checkpoint."""
        for path in self.source.iterdir():
            if path.suffix == ".safetensors" or path.name == INDEX:
                path.unlink()
        size = sum(tensor.nbytes for tensor in tensors.values()) * 2 // 5
        synthetic.write_checkpoint(self.source, dict(tensors), config or CONFIG, max_shard_size=size)

    def write_merge(self) -> None:
        """A configuration that merges the good checkpoint, as the base, with the one that is broken."""
        models = [{"model": str(path)} for path in (self.other, self.source)]
        content = {
            "models": models,
            "merge_method": "slerp",
            "base_model": str(self.other),
            "parameters": {"t": 0.3},
            "tokenizer_source": "base",
            **self.merge,
        }
        (self.top / "merge.yml").write_text(self.yaml or json.dumps(content))  # JSON is YAML

    def outside(self) -> Path:
        """The second shard moved out of the checkpoint, whole."""
        (self.top / "elsewhere").mkdir()
        return Path(shutil.move(self.shard, self.top / "elsewhere" / "weights.safetensors"))


@cache
def _good(directory: Path, name: str) -> Path:
    config = directory / "plain"
    # What is extracted from two checkpoints is their difference.
    tensors = state() if name == "source" else synthetic.make_state(CONFIG, seed=1, dtype=torch.bfloat16)
    synthetic.write_checkpoint(config, tensors, CONFIG)
    (config / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    size = sum(tensor.nbytes for tensor in tensors.values()) * 2 // 5
    convert(config, directory / name, Options(max_shard_size=str(size)))
    shutil.rmtree(config)
    assert sorted(path.name for path in (directory / name).glob("*.safetensors")) == list(SHARDS)
    return directory / name


def build(base: Path, top: Path) -> Arena:
    """An arena in the new directory `top`; the good checkpoints are made once in `base`."""
    top.mkdir(parents=True)
    arena = Arena(top)
    for path in (arena.source, arena.other):
        shutil.copytree(_good(base, path.name), path)
    return arena


def read(directory: Path) -> State:
    """Every tensor in the .safetensors files of a directory."""
    return {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}


def look(directory: Path) -> dict[str, object]:
    """Every path below `directory` without following links: kind, mode, and a file's content or a link's target."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = (mode, content)
    return found
