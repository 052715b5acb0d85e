"""Names are read without opening; tensors are opened when they are read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from zamba_compat.loading import Stored


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
def test_a_malformed_file_gets_the_library_s_error(shards: list[str], damage: object) -> None:
    file = Path(shards[0])
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with ExitStack() as opened, pytest.raises(safetensors.SafetensorError, match="header"):
        Stored(None, shards, opened)
