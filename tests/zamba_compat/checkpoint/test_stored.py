"""An open checkpoint: tensors as they are stored, and files that change meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.raw_files import A, B, C, write_sharded, write_single
from zamba_compat.checkpoint.reading.opening import StoredBytes, open_checkpoint
from zamba_compat.errors import CheckpointError

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")


def test_read_gives_the_stored_bits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    write_sharded(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, (_, shape, data) in {"a": A, "b": B, "c": C}.items():
            tensor = checkpoint.read(name)
            assert list(tensor.shape) == shape
            assert bytes(tensor.reshape(-1).view(torch.uint8).numpy()) == data
        with pytest.raises(KeyError):
            checkpoint.read("other")


def test_stored_bytes_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, (_, _, data) in {"a": A, "b": B, "c": C}.items():
            stored = checkpoint.stored_bytes(name)
            assert stored is not None
            assert stored == StoredBytes(tmp_path / checkpoint.tensors[name].shard, stored.offset, len(data))
            assert stored.path.read_bytes()[stored.offset :][: stored.nbytes] == data


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_takes_no_anonymous_memory(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    write_single(tmp_path)
    save_file({f"t{n}": torch.full((2**22,), float(n)) for n in range(6)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.read("t0").sum()
        before = anonymous()
        kept = [checkpoint.read(name) for name in checkpoint.tensors]
        assert [tensor.max().item() for tensor in kept] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert anonymous() - before < 24 * 1024  # of 96 MiB; in KiB


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def rewritten_in_place(path: Path) -> None:
    """Other content, the same size, and the modification time set back."""
    before = os.stat(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    os.replace(copy, path)


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b" ")


@posix
@pytest.mark.parametrize("change", [touched, rewritten_in_place, replaced, grown, Path.unlink])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-2.safetensors"])
def test_row_56_source_changes_during_the_run(tmp_path: Path, change: Callable[[Path], None], name: str) -> None:
    write_sharded(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.verify_unchanged()
        change(tmp_path / name)
        with pytest.raises(CheckpointError, match=name) as caught:
            checkpoint.verify_unchanged()
    assert caught.value.remedy


@posix
def test_row_56_header_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no time and no size tells, the hash of what was decided from does."""
    write_sharded(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        states = {seen.state.inode: seen.state for seen in checkpoint._seen}
        monkeypatch.setattr("zamba_compat.checkpoint.reading.stored.state_of", lambda fd: states[os.fstat(fd).st_ino])
        checkpoint.verify_unchanged()
        for name in ("config.json", "model.safetensors.index.json", "model-2.safetensors"):
            data = (tmp_path / name).read_bytes()
            with open(tmp_path / name, "r+b") as file:
                file.write(data[:12] + b" " + data[12:-1])
            with pytest.raises(CheckpointError, match=name):
                checkpoint.verify_unchanged()
            with open(tmp_path / name, "r+b") as file:
                file.write(data)
