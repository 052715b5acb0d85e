"""A broken checkpoint is opened as far as its headers allow; nothing outside of it is read. (Rows: test_inspection.)"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.raw_files import A, B, C, change_index, entries, pack, snapshot, with_header, write_sharded, write_single
from zamba_compat.checkpoint.reading.lenient import Faults, open_as_far
from zamba_compat.errors import CheckpointError, ZambaCompatError


def test_whole_checkpoints_are_opened_as_ever(tmp_path: Path) -> None:
    opened = open_as_far(write_sharded(tmp_path / "x"))
    with opened.checkpoint as checkpoint:
        assert list(checkpoint.tensors) == ["a", "c", "b"] and not opened.faults.found and not opened.unreadable
        assert checkpoint.read("c").shape == (5,)


def test_what_is_damaged_is_named_and_not_read(tmp_path: Path) -> None:
    directory = write_sharded(tmp_path / "x")
    shard = directory / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    before = snapshot(tmp_path)
    opened = open_as_far(directory)
    assert set(opened.checkpoint.tensors) == {"a", "b", "c"}
    assert opened.checkpoint.tensors["a"].shape == (2, 3) and opened.checkpoint.tensors["a"].nbytes == 12
    assert opened.unreadable == {"a", "c"}
    (fault,) = opened.faults.found
    assert "model-1.safetensors" in fault and "Incomplete download?" in fault
    with opened.checkpoint as checkpoint:
        assert checkpoint.read("b").shape == (2,)
        checkpoint.verify_unchanged()
    assert snapshot(tmp_path) == before


def test_every_damaged_shard_is_told(tmp_path: Path) -> None:
    directory = write_sharded(tmp_path / "x")
    (directory / "model-1.safetensors").write_bytes(b"")
    (directory / "model-2.safetensors").write_bytes(with_header(b'{"b": 1}', b""))
    found = open_as_far(directory).faults.found
    assert any("model-1" in fault and "empty" in fault for fault in found)
    assert any("model-2" in fault and "dtype, shape" in fault for fault in found)


def test_entries_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    header = entries({"a": A, "b": B, "c": C}) | {"__metadata__": {"format": "pt"}}
    header["a"]["dtype"] = "F3"
    header["b"]["shape"] = [-1]
    directory = write_single(tmp_path / "x")
    (directory / "model.safetensors").write_bytes(with_header(header, b"\0" * 25))
    opened = open_as_far(directory)
    assert list(opened.checkpoint.tensors) == ["c"] and opened.faults.found


def test_shards_without_an_index(tmp_path: Path) -> None:
    directory = write_sharded(tmp_path / "x")
    (directory / "model.safetensors.index.json").unlink()
    opened = open_as_far(directory)
    assert set(opened.checkpoint.tensors) == {"a", "b", "c"}
    (fault,) = opened.faults.found
    assert "need their index" in fault


def test_paths_in_an_index_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(pack({"secret": B}))
    directory = write_sharded(tmp_path / "x")
    change_index(directory, lambda content: content["weight_map"].update(secret="../outside.safetensors"))
    opened = open_as_far(directory)
    assert set(opened.checkpoint.tensors) == {"a", "b", "c"}
    assert any("is a path" in fault for fault in opened.faults.found)


def test_links_and_fifos_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(pack({"b": B}))
    (tmp_path / "outside.json").write_text('{"model_type": "zamba2"}')
    directory = write_sharded(tmp_path / "x")
    for name, target in (("model-2.safetensors", "outside.safetensors"), ("config.json", "outside.json")):
        (directory / name).unlink()
        (directory / name).symlink_to(tmp_path / target)
    (directory / "model-1.safetensors").unlink()
    os.mkfifo(directory / "model-1.safetensors")
    opened = open_as_far(directory)
    assert not opened.checkpoint.tensors and opened.checkpoint.config == {}
    assert sum("leads out" in fault for fault in opened.faults.found) == 2
    assert any("no regular file" in fault for fault in opened.faults.found)


def test_pickles_are_not_opened_unless_allowed(tmp_path: Path) -> None:
    directory = write_single(tmp_path / "x")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    opened = open_as_far(directory)
    assert not opened.checkpoint.tensors and "--allow-pickle" in opened.faults.found[0]
    opened = open_as_far(directory, allow_pickle=True)  # no pickle at all
    assert not opened.checkpoint.tensors and "nothing of it was loaded" in opened.faults.found[0]


@pytest.mark.parametrize("name", ["absent", "empty", "text.txt"])
def test_no_checkpoint_at_all(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no")
    with pytest.raises(CheckpointError):
        open_as_far(tmp_path / name)


def test_without_config(tmp_path: Path) -> None:
    directory = write_single(tmp_path / "x")
    (directory / "config.json").unlink()
    opened = open_as_far(directory)
    assert list(opened.checkpoint.tensors) == ["a", "b"] and opened.checkpoint.config == {}
    assert len(opened.faults.found) == 1 and "config.json" in opened.faults.found[0]
    (directory / "config.json").write_text(json.dumps([1]))
    opened = open_as_far(directory)
    assert opened.checkpoint.config == {} and len(opened.faults.found) == 1


def test_faults_are_kept_once() -> None:
    faults = Faults()

    def fail(what: str) -> None:
        raise ZambaCompatError(what)

    assert faults.attempt(len, "abc") == 3
    assert faults.attempt(fail, "x") is None and faults.attempt(fail, "x") is None
    faults.add("y")
    assert faults.found == ["x", "y"]
    with pytest.raises(TypeError):
        faults.attempt(len, 3)
