"""Names are read without opening; tensors are opened when they are read."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from zamba_compat.errors import CheckpointError
from zamba_compat.runtime.hub_layout import refuse_files_elsewhere
from zamba_compat.runtime.stored import Stored


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    files = [str(tmp_path / f"model-{n}.safetensors") for n in (1, 2)]
    save_file({"a": torch.arange(4.0), "b": torch.ones(2, 2)}, files[0], metadata={"format": "pt"})
    save_file({"c": torch.arange(3)}, files[1])
    return files


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    original = safetensors.safe_open

    def safe_open(file: str, **options: str) -> object:
        seen.append(file)
        return original(file, **options)

    monkeypatch.setattr(safetensors, "safe_open", safe_open)
    return seen


def test_names_open_no_file(shards: list[str], opens: list[str]) -> None:
    with ExitStack() as opened:
        assert sorted(Stored(None, shards, opened).names) == ["a", "b", "c"]
    assert opens == []


def test_a_file_is_opened_once_when_its_tensors_are_read(shards: list[str], opens: list[str]) -> None:
    with ExitStack() as opened:
        stored = Stored(None, shards, opened)
        assert torch.equal(stored.read("a"), torch.arange(4.0))
        assert torch.equal(stored.read("b"), torch.ones(2, 2))
        assert opens == shards[:1]
        assert torch.equal(stored.lazy("c")[1:], torch.arange(3)[1:])
    assert opens == shards


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:20], id="truncated"),
        pytest.param(lambda data: b"\xff" * 8 + data[8:], id="absurd header length"),
        pytest.param(lambda data: (4).to_bytes(8, "little") + b"[{}]", id="header is a list"),
        pytest.param(lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000, id="nested header"),
    ],
)
def test_a_malformed_file_is_refused(shards: list[str], damage: object) -> None:
    file = Path(shards[0])
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with ExitStack() as opened, pytest.raises(CheckpointError, match=r"model-1\.safetensors: .*(header|empty)"):
        Stored(None, shards, opened)


def test_row_09_a_tensor_in_two_files(shards: list[str]) -> None:
    save_file({"a": torch.zeros(4)}, shards[1])
    with ExitStack() as opened, pytest.raises(CheckpointError, match=r"model-2\.safetensors: Tensor 'a' is in another"):
        Stored(None, shards, opened)


def refused(files: list[str], origin: object) -> None:
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        refuse_files_elsewhere(files, origin)


def test_rows_01_02_files_of_other_directories(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    refuse_files_elsewhere(shards, tmp_path)
    refuse_files_elsewhere(shards, tmp_path.parent)  # a subfolder
    refuse_files_elsewhere(shards, "hub/id")
    refused(shards, inner)
    refused([f"{inner}/../model-1.safetensors"], str(inner))
    refused([shards[0], f"{inner}/x.safetensors"], "hub/id")
    refused([shards[0], f"{inner}/x.safetensors"], tmp_path)
    monkeypatch.chdir(inner)
    refused(["./../model-1.safetensors"], ".")
    monkeypatch.chdir(tmp_path)
    refuse_files_elsewhere(["./model-1.safetensors", "model-2.safetensors"], ".")
    refuse_files_elsewhere(["inner/../model-1.safetensors"], "inner/..")


def test_row_03_links_are_followed(shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.safetensors").symlink_to(shards[0])
    refuse_files_elsewhere([f"{tmp_path}/inner/x.safetensors"], tmp_path / "inner")


def test_row_04_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        refuse_files_elsewhere([f"{tmp_path}/x.safetensors"], tmp_path)
