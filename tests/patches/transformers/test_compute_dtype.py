"""A 4-bit configuration that leaves the dtype of its products out is told what that costs, on a GPU, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes")

from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from zamba_compat.patches.transformers import compute_dtype

from support import synthetic

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU counts as a GPU, and nothing was told yet."""
    monkeypatch.setattr(compute_dtype, "ELSEWHERE", ("disk", "meta"))
    monkeypatch.setattr(compute_dtype, "_told", False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = synthetic.make_config("1.2B", layers_block_type=("mamba", "hybrid"))
    return synthetic.write_checkpoint(tmp_path / "checkpoint", synthetic.make_state(config), config)


def load(checkpoint: Path, asked: Any = None, dtype: torch.dtype = torch.bfloat16) -> Any:
    more = {} if asked is None else {"quantization_config": asked}
    return AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=dtype, **more)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "bnb_4bit_compute_dtype" in record.getMessage()]


def test_left_out(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        load(checkpoint, BitsAndBytesConfig(**NF4), dtype)
    (line,) = told(caplog)  # once
    assert "float32, without the GPU's tensor cores" in line and "\n" not in line
    assert "Pass bnb_4bit_compute_dtype=torch.bfloat16" in line


def test_as_a_dict(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(checkpoint, dict(NF4), torch.float16)
    (line,) = told(caplog)
    assert "Pass bnb_4bit_compute_dtype=torch.float16" in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, "float32"])
def test_asked_for(dtype: Any, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(checkpoint, BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype))
    assert not told(caplog)


def test_model_in_float32(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(checkpoint, BitsAndBytesConfig(**NF4), torch.float32)
    load(checkpoint, BitsAndBytesConfig(load_in_8bit=True))
    assert not told(caplog)


def test_on_a_cpu(checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    load(checkpoint, BitsAndBytesConfig(**NF4))
    assert not told(caplog)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_of_a_checkpoint(
    dtype: torch.dtype | None, checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = checkpoint.parent / "quantized"
    load(checkpoint, BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype)).save_pretrained(saved)
    named = json.loads((saved / "config.json").read_text())["quantization_config"]["bnb_4bit_compute_dtype"]
    assert named == ("float32" if dtype is None else "bfloat16")  # nothing tells that it was left out
    monkeypatch.setattr(compute_dtype, "_told", False)
    caplog.clear()
    load(saved)
    if dtype is None:
        (line,) = told(caplog)
        assert "config.json" in line and "Write bfloat16 there" in line
    else:
        assert not told(caplog)


def test_other_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    load(tmp_path, BitsAndBytesConfig(**NF4))
    assert not told(caplog)


def test_the_config_is_as_without_the_import() -> None:
    """What is noted of a config is not in it, and goes with it."""
    noted = len(compute_dtype._left_out)
    config = BitsAndBytesConfig(**NF4)
    assert len(compute_dtype._left_out) == noted + 1
    assert not any("left_out" in name for name in vars(config))
    assert BitsAndBytesConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    del config
    assert len(compute_dtype._left_out) == noted
