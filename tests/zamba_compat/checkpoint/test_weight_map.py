"""The index against the shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.raw_files import B, change_index, refuse, write_sharded
from zamba_compat.checkpoint.reading.opening import Checkpoint, open_checkpoint
from zamba_compat.errors import CheckpointError


def test_row_06_missing_shards_are_all_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, {f"model-{n:02}.safetensors": {f"t{n}": B} for n in range(30)})
    for n in range(1, 30):
        (tmp_path / f"model-{n:02}.safetensors").unlink()
    message = str(refuse(tmp_path, "29 shards do not exist"))
    assert all(f"model-{n:02}.safetensors" in message for n in range(1, 30))


def test_row_07_the_tensor_is_in_another_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    change_index(tmp_path, lambda index: index["weight_map"].update(c="model-2.safetensors"))
    refuse(tmp_path, r"'c in model-2\.safetensors'")


@pytest.mark.parametrize("metadata", [..., None, {}])
def test_row_10_index_without_metadata(tmp_path: Path, metadata: Any) -> None:
    write_sharded(tmp_path)
    change_index(tmp_path, lambda i: i.pop("metadata") if metadata is ... else i.update(metadata=metadata))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata == {}


@pytest.mark.parametrize("weight_map", [..., None, [], {}, "x", {"a": None}, {"a": ["model-1.safetensors"]}, {"a": 1}])
def test_row_11_no_weight_map(tmp_path: Path, weight_map: Any) -> None:
    write_sharded(tmp_path)
    change_index(tmp_path, lambda i: i.pop("weight_map") if weight_map is ... else i.update(weight_map=weight_map))
    refuse(tmp_path, "weight_map")


@settings(deadline=None)
@given(data=st.binary(max_size=80), offset=st.integers(0, 300), cut=st.integers(0, 4))
def test_a_damaged_index_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, offset: int, cut: int
) -> None:
    directory = write_sharded(tmp_path_factory.getbasetemp() / "damaged_index")
    path = directory / "model.safetensors.index.json"
    text = bytearray(path.read_bytes())
    offset %= len(text)
    text[offset : offset + cut] = data
    path.write_bytes(text)
    try:
        checkpoint: Checkpoint = open_checkpoint(directory)
    except CheckpointError:
        return
    assert list(checkpoint.tensors) == ["a", "c", "b"]
