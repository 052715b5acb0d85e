"""Faults are told once, and without those that follow from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support import synthetic
from zamba_compat.operations.inspect import inspect

CONFIG = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, vocab_size=8, adapter_rank=2)
STATE = synthetic.make_state(CONFIG, dtype=torch.bfloat16)
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00003.safetensors"


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        words = json.loads((directory / "config.json").read_text()) | changes
        (directory / "config.json").write_text(json.dumps(words))

    return change


def _only(names: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        for path in directory.glob("model*"):
            path.unlink()
        save_file(names, directory / "model.safetensors", {"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_config(num_mem_blocks=0), "config.json: num_mem_blocks is 0"),
        (_config(num_hidden_layers=3), "config.json: layers_block_type has"),
        (_config(hidden_size="16"), "hidden_size is '16'"),
        (lambda directory: (directory / SHARD).unlink(), "do not exist"),
        (lambda directory: os.truncate(directory / SHARD, 100), "does not start with a safetensors header"),
        (lambda directory: os.truncate(directory / SHARD, 0), "The file is empty"),
        (_only({}), "No tensor is stored"),
        (_only({"a": torch.ones(2)}), "not the model's: a."),
    ],
)
def test_one_fault(change: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    size = sum(tensor.numel() for tensor in STATE.values())
    directory = synthetic.write_checkpoint(tmp_path / "a", STATE, CONFIG, max_shard_size=2 * size // 3 + 4000)
    assert (directory / SHARD).exists()
    change(directory)
    (fault,) = inspect(directory).a.faults
    assert says in fault and ": ." not in fault and "; there are ." not in fault


def test_sentences_end_before_the_remedy(tmp_path: Path) -> None:
    lacking = synthetic.drop(STATE, "*q_proj*", "*mamba.D")
    directory = synthetic.write_checkpoint(tmp_path / "a", lacking, CONFIG)
    faults = inspect(directory).a.faults
    assert len(faults) == 2  # what one layer has, and what layers share: neither follows from the other
    for fault in faults:
        assert ". The checkpoint is incomplete: download or convert it again." in fault, fault
