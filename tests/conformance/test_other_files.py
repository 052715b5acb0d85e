"""A file that is no weights is called what it is, with what to do, by from_pretrained and by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conformance.helpers import case as make_case
from conformance.helpers import load
from support import synthetic

pytestmark = pytest.mark.ours
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4973821432\n"
KINDS = {
    "pointer": (POINTER, "git-lfs pointer.*git lfs pull"),
    "page": (
        b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>" + b" " * 4000,
        "web page.*hf download",
    ),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(1000), "GGUF.*safetensors"),
}


def write(directory: Path, data: bytes, name: str) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(make_case("7B").config))
    (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_loading(kind: str, name: str, dtype: str, tmp_path: Path) -> None:
    data, message = KINDS[kind]
    directory = write(tmp_path / "model", data, name)
    with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
        load(directory, torch_dtype=dtype)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.Q4_K_M.gguf"])
@pytest.mark.parametrize("kind", KINDS)
def test_commands(kind: str, name: str, tmp_path: Path) -> None:
    from zamba_compat.checkpoint.reading.opening import open_checkpoint
    from zamba_compat.operations.inspect import inspect

    data, message = KINDS[kind]
    file = write(tmp_path / "model", data, name) / name
    with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
        open_checkpoint(file, allow_pickle=True)
    if not name.endswith(".gguf"):
        assert any(message.split(".")[0] in fault for fault in inspect(file.parent, allow_pickle=True).a.faults)


def test_pickled_under_another_name(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", b"", "model.safetensors")
    torch.save({"a": torch.ones(1)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"pickled file.*Rename"):
        load(directory)


def test_an_adapters_folder(tmp_path: Path) -> None:
    from zamba_compat.checkpoint.reading.opening import open_checkpoint

    case = make_case("7B")
    directory = write(tmp_path / "lora", b"", "model.safetensors")
    (directory / "model.safetensors").unlink()
    lora = {"base_model.model.model.layers.0.mamba.in_proj.lora_A.weight": torch.ones(2, 2)}
    save_file(lora, directory / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter of PEFT.*merge_and_unload"):
        open_checkpoint(directory)
    assert case.config


def test_a_sound_checkpoint_that_fails_keeps_its_error(tmp_path: Path) -> None:
    case = make_case("7B")
    directory = synthetic.write_checkpoint(tmp_path / "model", case.state, case.config)
    with pytest.raises(TypeError):
        load(directory, no_such_argument=1)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x4643])
def test_a_header_whose_length_looks_like_a_pickle(length: int) -> None:
    from zamba_compat.checkpoint.reading.file_kinds import kind_of

    assert kind_of(length.to_bytes(8, "little") + b'{"a":') is None
