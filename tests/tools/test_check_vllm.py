"""check_vllm.py: what it finds in a loader, and vLLM's own where its source is given (VLLM_SOURCE)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from _vllm.loading import load
from support import synthetic
from zamba_compat.operations.convert import Options, convert

VLLM = Path(os.environ.get("VLLM_SOURCE", ""))
ONE_GROUP = synthetic.make_config("1.2B")

# A model of one linear layer beside the embedding: what is asked of `load` is whether it sees what became of the keys.
MODEL = """
import torch
from torch import nn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.nowhere import decorated, Base


@decorated
class Zamba2ForCausalLM(nn.Module, Base):
    def __init__(self, *, vllm_config):
        super().__init__()
        size = vllm_config.model_config.hf_config.hidden_size
        self.final = RMSNorm(size)
        self.embedding = nn.Parameter(torch.empty(vllm_config.model_config.hf_config.vocab_size, size))

    def load_weights(self, weights):
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        for name, tensor in weights:
            if name == "model.embed_tokens.weight":
                loader = getattr(self.embedding, "weight_loader", default_weight_loader)
                loader(self.embedding, tensor)
            elif name == "model.final_layernorm.weight":
                {norm}
            elif {raises}:
                raise KeyError(name)
"""
UTILS = """
def default_weight_loader(param, loaded_weight):
    param.data.copy_(loaded_weight)
"""


def invented(root: Path, norm: str, raises: bool = False) -> Path:
    places = {
        "models/zamba2.py": MODEL.replace("{norm}", norm).replace("{raises}", str(raises)),
        "model_loader/weight_utils.py": UTILS,
    }
    for place, text in places.items():
        path = root / "vllm" / "model_executor" / place
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return root


def checkpoint(root: Path, config: synthetic.Config = ONE_GROUP) -> Path:
    return synthetic.write_checkpoint(root, synthetic.make_state(config, dtype=torch.bfloat16), config)


def test_keys_that_no_parameter_takes(tmp_path: Path) -> None:
    stored = checkpoint(tmp_path / "hub")
    found = load(invented(tmp_path / "a", "self.final.weight.weight_loader(self.final.weight, tensor)"), stored)
    assert found.parameters == 2 and not found.unfilled and not found.error and not found.right
    assert len(found.unread) == found.keys - 2
    assert not {"model.embed_tokens.weight", "model.final_layernorm.weight"} & {*found.unread}


@pytest.mark.parametrize("norm", ["pass", "self.final.weight.data[1:].copy_(tensor[1:])"])
def test_parameters_that_are_not_filled_whole(norm: str, tmp_path: Path) -> None:
    found = load(invented(tmp_path / "a", norm), checkpoint(tmp_path / "hub"))
    assert found.unfilled == ("final.weight",) and not found.right


def test_what_the_loader_raises(tmp_path: Path) -> None:
    found = load(invented(tmp_path / "a", "pass", raises=True), checkpoint(tmp_path / "hub"))
    assert found.error.startswith("KeyError") and not found.right


given = pytest.mark.skipif(not VLLM.parts, reason="VLLM_SOURCE names no source of vLLM")
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "w4a16": {"quantize": "w4a16", "group_size": 32},
    "w4a16 asymmetric": {"quantize": "w4a16", "group_size": 32, "asymmetric": True},
    "w4a16 kinds kept": {"quantize": "w4a16", "group_size": 32, "ignore": ["q_proj", "k_proj", "v_proj", "out_proj"]},
    "w8a16": {"quantize": "w8a16", "group_size": -1},
    "w8a16 shared kept": {"quantize": "w8a16", "group_size": -1, "keep_shared_16bit": True},
    "fp8": {"quantize": "fp8"},
}


@given
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", ["7B", "1.2B"])
def test_vllm_takes_every_key(pattern: str, way: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    sizes = {"adapter_rank": 32, "mamba_d_state": 16, "vocab_size": 64}
    checkpoint(tmp_path / "hub", synthetic.make_config(pattern, **sizes))
    convert(tmp_path / "hub", tmp_path / "made", Options(**WAYS[way]))
    found = load(VLLM, tmp_path / "made")
    assert found.right, found


@given
def test_in_proj_of_one_group_is_not_split_when_packed(tmp_path: Path) -> None:
    """What docs/serving.md says of tensor parallelism; when this fails, it says too much."""
    pytest.importorskip("compressed_tensors")
    checkpoint(tmp_path / "hub", synthetic.make_config("1.2B", adapter_rank=32, vocab_size=128))
    packed: dict[str, Any] = {"quantize": "w4a16", "group_size": 16}
    ways = {"packed": packed, "kept": {**packed, "ignore": ["in_proj"]}, "fp8": {"quantize": "fp8"}}
    for name, options in ways.items():
        right = name != "packed"
        convert(tmp_path / "hub", tmp_path / name, Options(**options))
        found = [load(VLLM, tmp_path / name, rank, 2) for rank in (0, 1)]
        assert all(one.right for one in found) == right, found


@given
def test_7b_on_two(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    checkpoint(tmp_path / "hub", synthetic.make_config("7B", adapter_rank=32, vocab_size=128))
    convert(tmp_path / "hub", tmp_path / "made", Options(quantize="w4a16", group_size=16))
    found = [load(VLLM, tmp_path / "made", rank, 2) for rank in (0, 1)]
    assert all(one.right for one in found), found
