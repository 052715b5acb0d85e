"""Bytes copied, hashed and searched for what is not finite."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zamba_compat.checkpoint import pipeline as module
from zamba_compat.checkpoint.dtypes import SIZES, to_torch
from zamba_compat.checkpoint.pipeline import BUFFERS, CHUNK, Examined, Pipeline, all_finite
from zamba_compat.checkpoint.stored import StoredBytes
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


SIZES_TO_COPY = [1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK * (2 * BUFFERS) + 5]


@pytest.mark.parametrize("size", SIZES_TO_COPY)
@pytest.mark.parametrize("way", ["copy", "append", "copy without preadv"])
def test_bytes_hash_and_progress(tmp_path: Path, size: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "copy without preadv":
        monkeypatch.delattr(os, "preadv", raising=False)
    before, data = b"before", os.urandom(min(size, 10**6)) * (size // 10**6 + 1)
    data = data[:size]
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


def test_a_slow_hash_thread_sees_the_bytes_that_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer is filled again before it has been examined."""
    import time

    monkeypatch.setattr(module, "CHUNK", 1000)
    data = os.urandom(100_000)
    (tmp_path / "source").write_bytes(data)

    class Slow(Examined):
        def take(self, chunk: memoryview) -> None:
            time.sleep(0.001)
            super().take(chunk)

    examined = Slow("U8")
    with open(tmp_path / "target", "wb") as target, Pipeline() as pipeline:
        pipeline.copy(target.fileno(), StoredBytes(tmp_path / "source", 0, len(data)), examined)
        pipeline.drain()
    assert examined.sha256.hexdigest() == hashlib.sha256(data).hexdigest()


def test_not_finite_across_chunks(tmp_path: Path) -> None:
    tensor = torch.zeros(CHUNK, dtype=torch.bfloat16)
    for position, expected in ((None, True), (0, False), (CHUNK // 2, False), (CHUNK - 1, False)):
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
        assert len(descriptors()) == 1
    assert descriptors() == []
