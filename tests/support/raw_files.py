"""safetensors files built byte by byte, right or wrong in a chosen way, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from zamba_compat.checkpoint.reading.opening import open_checkpoint
from zamba_compat.errors import CheckpointError, ZambaCompatError

Stored = Mapping[str, tuple[str, list[int], bytes]]

A = ("BF16", [2, 3], bytes(range(12)))
B = ("F32", [2], bytes(range(50, 58)))
C = ("U8", [5], b"hello")


def with_header(header: bytes | Any, data: bytes) -> bytes:
    """A file with this header; anything but bytes is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entries(stored: Stored) -> dict[str, Any]:
    """The header of tensors that lie one behind the other."""
    header, at = {}, 0
    for name, (dtype, shape, data) in stored.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return header


def pack(stored: Stored, metadata: Mapping[str, str] | None = None) -> bytes:
    """A whole file."""
    header = ({} if metadata is None else {"__metadata__": dict(metadata)}) | entries(stored)
    return with_header(header, b"".join(data for _, _, data in stored.values()))


def write_single(directory: Path, stored: Stored | None = None, **kwargs: Any) -> Path:
    """config.json and model.safetensors; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "zamba2"}')
    (directory / "model.safetensors").write_bytes(pack(stored or {"a": A, "b": B}, **kwargs))
    return directory


def write_sharded(directory: Path, shards: Mapping[str, Stored] | None = None, **index: Any) -> Path:
    """config.json, shards and their index; returns the directory. index: entries that replace the right ones."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "zamba2"}')
    shards = shards or {"model-1.safetensors": {"a": A, "c": C}, "model-2.safetensors": {"b": B}}
    for shard, stored in shards.items():
        (directory / shard).write_bytes(pack(stored))
    weight_map = {name: shard for shard, stored in shards.items() for name in stored}
    write_index(directory, {"metadata": {"total_size": 25}, "weight_map": weight_map, **index})
    return directory


def write_index(directory: Path, content: Any) -> Path:
    """The index; anything but bytes is written as JSON. Returns its path."""
    path = directory / "model.safetensors.index.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def snapshot(directory: Path) -> dict[str, bytes | None]:
    """Every path below `directory`, and the content of its files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def change_index(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index in place."""
    content = json.loads((directory / "model.safetensors.index.json").read_text())
    change(content)
    write_index(directory, content)


def refuse(
    source: Path, match: str, error: type[ZambaCompatError] = CheckpointError, inside: Path | None = None
) -> ZambaCompatError:
    """Opening `source` fails, says what, where and the remedy, and leaves every file (of `inside`) as it was."""
    directory = inside or (source if source.is_dir() else source.parent)
    before = snapshot(directory)
    with pytest.raises(error, match=match) as caught:
        open_checkpoint(source)
    assert caught.value.where
    assert caught.value.remedy
    assert snapshot(directory) == before
    return caught.value
