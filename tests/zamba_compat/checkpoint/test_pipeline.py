"""Bytes copied, hashed and searched for what is not finite."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zamba_compat.checkpoint.dtypes import SIZES, all_finite, to_torch
from zamba_compat.checkpoint.reading.stored import StoredBytes
from zamba_compat.checkpoint.writing import pipeline as module
from zamba_compat.checkpoint.writing.pipeline import BUFFER, STEP, Examined, Pipeline
from zamba_compat.errors import CheckpointError

torch = pytest.importorskip("torch")
FLOATS = [word for word in SIZES if word.startswith(("F", "BF"))]


@pytest.mark.parametrize("word", FLOATS)
def test_every_bit_pattern(word: str) -> None:
    """Of one- and two-byte floats all values, of wider ones those with the highest and lowest bits varied."""
    size = SIZES[word]
    high = torch.arange(2 ** min(16, 8 * size), dtype=torch.int32)
    columns = [high & 255] if size == 1 else [high & 255, high >> 8]
    patterns = [
        torch.stack([torch.full_like(high, low)] * (size - len(columns)) + columns, 1)
        for low in ((0, 1, 255) if size > 2 else (0,))
    ]
    data = torch.cat(patterns).to(torch.uint8).contiguous()
    values = data.reshape(-1).view(to_torch(word)).to(torch.float64)
    raw = data.numpy()
    found = [all_finite(memoryview(raw[n]), word) for n in range(0, len(raw), 1 if size <= 2 else 7)]
    assert found == values.isfinite().tolist()[:: 1 if size <= 2 else 7]


@pytest.mark.parametrize("word", sorted(set(SIZES) - set(FLOATS)))
def test_integers_are_finite(word: str) -> None:
    assert all_finite(memoryview(b"\xff" * 16), word)


@settings(deadline=None)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_one_among_many(values: list[float]) -> None:
    data = torch.tensor(values, dtype=torch.float32).view(torch.uint8).numpy()
    assert all_finite(memoryview(data), "F32") == all(map(math.isfinite, values))


def no_attribute(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(os, name, raising=False)


def refuses(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", fail, raising=False)


def stops_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = os.copy_file_range, []

    def short(source: int, target: int, count: int, offset: int) -> int:
        calls.append(count)
        return original(source, target, min(count, 777), offset) if len(calls) < 3 else 0

    monkeypatch.setattr(os, "copy_file_range", short)


WAYS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "copy": lambda patch: None,
    "append": lambda patch: None,
    "no copy_file_range": lambda patch: no_attribute(patch, "copy_file_range"),
    "two file systems": lambda patch: refuses(patch, errno.EXDEV),
    "not supported": lambda patch: refuses(patch, errno.EOPNOTSUPP),
    "stops halfway": stops_halfway,
    "no preadv": lambda patch: (no_attribute(patch, "copy_file_range"), no_attribute(patch, "preadv"))[0],
    "no posix_fadvise": lambda patch: patch.setattr(module, "_ADVISE", None),
}


@pytest.mark.parametrize("size", [1, 1000, BUFFER - 1, BUFFER, BUFFER + 1, 2 * STEP + 5, 3 * 2**25])
@pytest.mark.parametrize("way", WAYS)
def test_bytes_hash_and_progress(tmp_path: Path, size: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size > STEP and way not in ("copy", "append", "no copy_file_range"):
        size = BUFFER * 2 + 1
    WAYS[way](monkeypatch)
    before, data = b"before", (os.urandom(min(size, 10**6)) * (size // 10**6 + 1))[:size]
    (tmp_path / "source").write_bytes(b"xyz" + data + b"after")
    told: list[int] = []
    examined = Examined("U8")
    with open(tmp_path / "target", "wb", buffering=0) as target, Pipeline(told.append) as pipeline:
        target.write(before)
        if way == "append":
            pipeline.append(target.fileno(), memoryview(data), examined)
        else:
            pipeline.copy(target.fileno(), StoredBytes(tmp_path / "source", 3, size), examined)
        pipeline.drain()
    assert (tmp_path / "target").read_bytes() == before + data
    assert examined.sha256.hexdigest() == hashlib.sha256(data).hexdigest()
    assert examined.is_finite
    assert sum(told) == size


def test_another_error_of_the_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses(monkeypatch, errno.ENOSPC)
    (tmp_path / "source").write_bytes(bytes(10))
    with (
        pytest.raises(OSError, match="No space left") as caught,
        open(tmp_path / "target", "wb") as target,
        Pipeline() as pipeline,
    ):
        pipeline.copy(target.fileno(), StoredBytes(tmp_path / "source", 0, 10), Examined("U8"))
    assert caught.value.errno == errno.ENOSPC


def test_many_tensors_of_two_sources_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", 10_000)
    parts = [os.urandom(3000 + n) for n in range(40)]
    for name in ("even", "odd"):
        (tmp_path / name).write_bytes(b"".join(parts[name == "odd" :: 2]))
    examined = [Examined("U8") for _ in parts]
    at = {"even": 0, "odd": 0}
    waiting = 0
    with open(tmp_path / "target", "wb") as target, Pipeline() as pipeline:
        for n, part in enumerate(parts):
            name = "odd" if n % 2 else "even"
            pipeline.copy(target.fileno(), StoredBytes(tmp_path / name, at[name], len(part)), examined[n])
            at[name] += len(part)
            waiting = max(waiting, sum(size for _, size in pipeline._waiting))
        pipeline.drain()
    assert (tmp_path / "target").read_bytes() == b"".join(parts)
    assert [e.sha256.hexdigest() for e in examined] == [hashlib.sha256(part).hexdigest() for part in parts]
    assert waiting <= 10_000


def test_not_finite_across_chunks(tmp_path: Path) -> None:
    tensor = torch.zeros(BUFFER, dtype=torch.bfloat16)
    for position, expected in ((None, True), (0, False), (BUFFER // 2, False), (BUFFER - 1, False)):
        values = tensor.clone()
        if position is not None:
            values[position] = float("nan")
        examined = Examined("BF16")
        with open(tmp_path / "target", "wb") as target, Pipeline() as pipeline:
            pipeline.append(target.fileno(), memoryview(values.view(torch.uint8).numpy()), examined)
            pipeline.drain()
        assert examined.is_finite is expected


def test_row_56_a_source_that_becomes_shorter(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100))
    with (
        pytest.raises(CheckpointError, match="became shorter"),
        open(tmp_path / "target", "wb") as target,
        Pipeline() as pipeline,
    ):
        pipeline.copy(target.fileno(), StoredBytes(tmp_path / "source", 90, 11), Examined("U8"))


def test_an_error_in_the_thread_is_raised(tmp_path: Path) -> None:
    class Broken(Examined):
        def take(self, chunk: memoryview) -> None:
            raise LookupError

    with pytest.raises(LookupError), open(tmp_path / "target", "wb") as target, Pipeline() as pipeline:
        pipeline.append(target.fileno(), memoryview(b"x"), Broken("U8"))
        pipeline.drain()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    (tmp_path / "source").write_bytes(bytes(10))

    def descriptors() -> list[str]:
        return [p for fd in os.listdir("/proc/self/fd") if "source" in (p := os.path.realpath(f"/proc/self/fd/{fd}"))]

    with open(tmp_path / "target", "wb") as target, Pipeline() as pipeline:
        pipeline.copy(target.fileno(), StoredBytes(tmp_path / "source", 0, 10), Examined("U8"))
        pipeline.drain()  # the examiner's own is closed with it
        assert len(descriptors()) == 1
    assert descriptors() == []


@pytest.mark.parametrize("moment", ["submitted", "ended"])
def test_row_54_a_stream_that_is_interrupted_leaves_no_examiner_waiting(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between handing the queue to an examiner and the first piece, and instead of the end of the stream."""
    original = queue.Queue.put

    def put(self: Any, item: object, *args: Any, **kwargs: Any) -> None:
        if isinstance(item, memoryview) if moment == "submitted" else item is None:
            monkeypatch.undo()
            raise KeyboardInterrupt
        original(self, item, *args, **kwargs)

    def run() -> None:
        with (
            open(tmp_path / "x", "wb", buffering=0) as file,
            pytest.raises(KeyboardInterrupt),
            Pipeline() as pipeline,
        ):
            monkeypatch.setattr(queue.Queue, "put", put)
            pipeline.stream(file.fileno(), iter([memoryview(bytes(8))] * 40), Examined("U8"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_failing_examiner_holds_nobody_up(tmp_path: Path) -> None:
    """The pieces behind it are let through, and the failure is raised in the end."""
    taken = 0

    class Failing(Examined):
        def take(self, chunk: memoryview) -> None:
            nonlocal taken
            taken += 1
            raise ZeroDivisionError

    def run() -> None:
        with open(tmp_path / "x", "wb", buffering=0) as file, Pipeline() as pipeline:
            for _ in range(3):
                pipeline.stream(file.fileno(), iter([memoryview(bytes(8))] * 40), Failing("U8"))
            with pytest.raises(ZeroDivisionError):
                pipeline.drain()
            ended.append(taken)

    ended: list[int] = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert ended and (tmp_path / "x").stat().st_size == 3 * 40 * 8
