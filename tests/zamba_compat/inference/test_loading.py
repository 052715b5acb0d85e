"""How models are loaded, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from zamba_compat.errors import CheckpointError, ZambaCompatError
from zamba_compat.inference.loading import Loading, device_of, load, peak_memory, seed
from zamba_compat.operations.convert import Options, convert

from .conftest import TINY

BASE = str(TINY / "base")


@pytest.mark.parametrize(
    ("how", "dtype"),
    [("auto", torch.bfloat16), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)],
)
def test_dtypes(how: str, dtype: torch.dtype) -> None:
    loaded = load(BASE, Loading(load=how))
    assert {parameter.dtype for parameter in loaded.model.model.layers.parameters()} == {dtype}
    assert not loaded.model.training and loaded.device == device_of("auto") and loaded.seconds > 0


@pytest.mark.parametrize(("how", "kind"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_quantized_while_loading(how: str, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = load(BASE, Loading(load=how, device="cpu"))
    kinds = {name: type(module).__name__ for name, module in loaded.model.named_modules() if name.endswith("_proj")}
    assert kinds and set(kinds.values()) == {kind}
    assert any("shared_transformer" in name for name in kinds)


def test_quantized_before(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    convert(BASE, tmp_path / "made", Options(quantize="nf4"))
    for how in ("auto", "4bit"):
        loaded = load(str(tmp_path / "made"), Loading(load=how, device="cpu"))
        assert type(loaded.model.model.layers[0].mamba.in_proj).__name__ == "Linear4bit"
    with pytest.raises(CheckpointError, match="stored in 4bit, so it cannot be loaded in bfloat16"):
        load(str(tmp_path / "made"), Loading(load="bf16"))


def test_quantized_in_another_way(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "dataset": None}
    (tmp_path / "made" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="stored in gptq, so it cannot be loaded in 4bit"):
        load(str(tmp_path / "made"), Loading(load="4bit"))


def test_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("the hub is asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in (
        str(tmp_path / "nowhere"),
        "nowhere",
        "models/nowhere",
        "./nowhere",
        "../nowhere/",
        "no where",
        "a\0b",
        "",
    ):
        with pytest.raises(CheckpointError, match=r"There is no such directory|null"):
            load(name)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="No model can be loaded"):
        load(str(tmp_path))


def test_no_tokenizer(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / "base" / name, tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer.*tokenizer\.json"):
        load(str(tmp_path))


def test_no_pad_token(tmp_path: Path) -> None:
    shutil.copytree(TINY / "base", tmp_path / "a")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        words = json.loads((tmp_path / "a" / name).read_text())
        words.pop("pad_token")
        (tmp_path / "a" / name).write_text(json.dumps(words))
    loaded = load(str(tmp_path / "a"))
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id


def test_devices() -> None:
    assert device_of("cpu") == "cpu"
    with pytest.raises(ZambaCompatError, match="is no device"):
        device_of("gpu-9")
    with pytest.raises(ZambaCompatError, match="torch sees"):
        device_of("cuda:99")
    for name in ("meta", "mps"):
        if name == "meta" or not torch.backends.mps.is_available():
            with pytest.raises(ZambaCompatError, match=f"No model runs on {name} here"):
                device_of(name)
    with pytest.raises(ZambaCompatError, match="no way to load"):
        Loading(load="3bit")
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(ZambaCompatError, match="more than 64 bits"):
            Loading(seed=number)
    assert peak_memory("cpu") > 2**20


def test_seed() -> None:
    import random

    for extreme in (2**64 - 1, -(2**63)):
        seed(extreme)

    import numpy as np

    drawn = []
    for _ in range(2):
        seed(5)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
