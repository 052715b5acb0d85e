"""Pickled weights: their tensors and nothing else, and only when asked for."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.errors import CheckpointError

torch = pytest.importorskip("torch")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


def state() -> dict[str, Any]:
    return {"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b": torch.arange(4).reshape(2, 2).t()}


def test_row_46_pickles_need_leave(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.pt")
    (tmp_path / "config.json").write_text("{}")
    torch.save(state(), tmp_path / "pytorch_model.bin")
    for source in (tmp_path, tmp_path / "x.pt"):
        with pytest.raises(CheckpointError, match="can run code") as caught:
            open_checkpoint(source)
        assert "--allow-pickle" in (caught.value.remedy or "")


@pytest.mark.parametrize("form", ["zip", "legacy", "plain", "inner"])
def test_row_46_malicious_pickle(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, ran = tmp_path / "x.pt", tmp_path / "ran"
    content = {"a": torch.zeros(2), "b": Evil(ran)}
    if form == "plain":
        path.write_bytes(pickle.dumps(Evil(ran)))
    elif form == "inner":
        torch.save({"model": content}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="nothing of it was loaded") as caught:
        open_checkpoint(path, allow_pickle=True)
    assert "system" in str(caught.value) or form in ("legacy", "plain")
    assert "weights_only" not in str(caught.value)  # no advice to run it
    assert caught.value.__cause__ is None
    assert not ran.exists()


def test_row_46_a_torch_that_can_be_got_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(CheckpointError, match="does not read pickled files safely") as caught:
        open_checkpoint(tmp_path / "x.pt", allow_pickle=True)
    assert "2.6" in (caught.value.remedy or "")


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda s: {"state_dict": s, "step": 3}, lambda s: {"model": s}])
def test_tensors_and_their_description(tmp_path: Path, form: str, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(state()), tmp_path / "x.pt", _use_new_zipfile_serialization=form == "zip")
    with open_checkpoint(tmp_path / "x.pt", allow_pickle=True) as checkpoint:
        assert checkpoint.config == {}
        assert checkpoint.format == "torch"
        assert list(checkpoint.tensors) == ["a", "b"]
        info = checkpoint.tensors["b"]
        assert (info.dtype, info.shape, info.offset, info.nbytes, info.shard) == ("I64", (2, 2), -1, 32, "x.pt")
        assert checkpoint.stored_bytes("b") is None
        for name, tensor in state().items():
            assert torch.equal(checkpoint.read(name), tensor)


def test_shards_with_an_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "pytorch_model-2.bin")
    index = '{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}'
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        assert checkpoint.read("b").tolist() == [1.0, 1.0]
    (tmp_path / "pytorch_model.bin.index.json").write_text(index.replace('"b"', '"c"'))
    with pytest.raises(CheckpointError, match=r"does not hold: 'c in pytorch_model-2\.bin'"):
        open_checkpoint(tmp_path, allow_pickle=True)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    from support.raw_files import write_single

    write_single(tmp_path)
    torch.save(state(), tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        assert checkpoint.format == "safetensors"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "no state dict"),
        ({}, "no state dict"),
        ({"a": 1}, "Not tensors with a name: 'a'"),
        ({"a": torch.zeros(1), "b": "text"}, "Not tensors with a name: 'b'"),
        ({1: torch.zeros(1)}, "Not tensors with a name: '1'"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "sparse"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"a": torch.zeros(1).expand(10**9)}, "repeats the few elements"),
        ({"a": torch.zeros(2, device="meta")}, "meta|nothing of it was loaded"),
    ],
)
def test_other_content(tmp_path: Path, content: Any, match: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(tmp_path / "x.pt", allow_pickle=True)
    assert str(tmp_path / "x.pt") in (caught.value.where or "")
    assert caught.value.remedy


def test_row_15_16_empty_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(state(), path)
    data = path.read_bytes()
    for kept, match in ((0, "empty"), (len(data) // 2, "nothing of it was loaded"), (3, "nothing of it was loaded")):
        path.write_bytes(data[:kept])
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(path, allow_pickle=True)


def test_an_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "x.pt", allow_pickle=True)


@pytest.mark.skipif(sys.platform != "linux", reason="change times as on Linux")
def test_row_56_a_pickled_source_that_changes(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt", allow_pickle=True) as checkpoint:
        checkpoint.verify_unchanged()
        os.utime(tmp_path / "x.pt", ns=(1, 1))
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            checkpoint.verify_unchanged()
