"""The header of a safetensors file: what is accepted, and what each damage gets."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.raw_files import A, B, C, entries, pack, with_header
from zamba_compat.checkpoint.dtypes import SIZES, from_torch, to_torch
from zamba_compat.checkpoint.reading.headers import Header, read_header
from zamba_compat.errors import CheckpointError

GOOD = {"a": A, "b": B, "c": C}
DATA = b"".join(data for _, _, data in GOOD.values())


def read(path: Path, content: bytes) -> Header:
    path = path / "x.safetensors"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, shard=path.name, where=str(path))
    finally:
        os.close(fd)


def refuse(path: Path, content: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read(path, content)
    assert str(path / "x.safetensors") in (caught.value.where or "")
    assert caught.value.remedy
    assert (path / "x.safetensors").read_bytes() == content


def changed(**change: Any) -> bytes:
    header = entries(GOOD)
    header["b"] = header["b"] | change
    return with_header(header, DATA)


def test_every_field(tmp_path: Path) -> None:
    content = pack(GOOD, metadata={"format": "pt"})
    header = read(tmp_path, content)
    assert header.metadata == {"format": "pt"}
    assert [tensor.name for tensor in header.tensors] == ["a", "b", "c"]
    a, b, _ = header.tensors
    assert (a.dtype, a.shape, a.shard, a.nbytes) == ("BF16", (2, 3), "x.safetensors", 12)
    assert content[b.offset : b.offset + b.nbytes] == B[2]


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = entries(GOOD)
    content = with_header(dict(sorted(header.items(), reverse=True)), DATA)
    assert [tensor.name for tensor in read(tmp_path, content).tensors] == ["a", "b", "c"]


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {word: torch.zeros(3, 2).to(to_torch(word)) for word in SIZES}
    tensors["scalar"], tensors["empty"] = torch.tensor(1.0), torch.zeros(0, 3)
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    found = {info.name: info for info in read(tmp_path, (tmp_path / "x.safetensors").read_bytes()).tensors}
    for name, tensor in tensors.items():
        assert found[name].dtype == from_torch(tensor.dtype)
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].nbytes == tensor.numel() * tensor.element_size()


def test_row_13_duplicate_field(tmp_path: Path) -> None:
    text = b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    refuse(tmp_path, with_header(text, b"x"), "'dtype' more than once")


@pytest.mark.parametrize("kept", [1, 7, 8, 20, -1, -len(DATA)])
def test_row_16_truncated(tmp_path: Path, kept: int) -> None:
    refuse(tmp_path, pack(GOOD)[:kept], "[Ii]ncomplete download")


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**63, 2**64 - 1])
def test_row_18_absurd_header_length(tmp_path: Path, length: int) -> None:
    refuse(tmp_path, struct.pack("<Q", length) + pack(GOOD)[8:], f"{length} bytes of header")


def test_row_20_same_bytes_twice(tmp_path: Path) -> None:
    header = entries({"a": B})
    header["b"] = header["a"]
    refuse(tmp_path, with_header(header, B[2]), "'b' overlaps tensor 'a'")


def test_row_20_hole_before_the_first(tmp_path: Path) -> None:
    header = {"c": {"dtype": "U8", "shape": [5], "data_offsets": [3, 8]}}
    refuse(tmp_path, with_header(header, b"xxxhello"), "3 bytes between the header")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shape": [3]}, r"takes 12 bytes, not the 8"),
        ({"dtype": "F64"}, r"takes 16 bytes"),
        ({"data_offsets": [12, 19]}, r"takes 8 bytes, not the 7"),
        ({"data_offsets": [20, 12]}, r"takes 8 bytes, not the -8"),
        ({"shape": [2**62, 2**62]}, r"takes \d+ bytes"),
        ({"shape": [-2, -1]}, "shape"),
        ({"shape": [True, 2]}, "shape"),
        ({"shape": [2.0]}, "shape"),
        ({"shape": ["2"]}, "shape"),
        ({"shape": 2}, "shape"),
        ({"shape": [1] * 9}, "shape"),
        ({"data_offsets": [12, 20, 28]}, "data_offsets"),
        ({"data_offsets": [12.0, 20.0]}, "data_offsets"),
        ({"data_offsets": None}, "data_offsets"),
        ({"data_offsets": [-8, 0]}, "data_offsets"),
        ({"other": 1}, "not described"),
    ],
)
def test_row_21_sizes_that_disagree(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    refuse(tmp_path, changed(**change), match)


@pytest.mark.parametrize("entry", [None, [], "F32", {"dtype": "U8", "shape": [1]}])
def test_row_21_no_description(tmp_path: Path, entry: Any) -> None:
    refuse(tmp_path, with_header({"a": entry}, b"x"), "not described")


@pytest.mark.parametrize("dtype", ["F4", "f32", "float32", "C64", "", None, 32, ["F32"]])
def test_row_22_unknown_dtype(tmp_path: Path, dtype: Any) -> None:
    refuse(tmp_path, changed(dtype=dtype), "dtype .* is not known")


@pytest.mark.parametrize("metadata", [[], "x", {"a": 1}, {"a": None}])
def test_metadata_is_text(tmp_path: Path, metadata: Any) -> None:
    refuse(tmp_path, with_header({"__metadata__": metadata} | entries({"a": A}), A[2]), "__metadata__")


@pytest.mark.parametrize("text", [b"  {}", b"[]", b"\xef\xbb\xbf{}", b"\x80\x02}q\x00.", b"null"])
def test_no_safetensors_file(tmp_path: Path, text: bytes) -> None:
    refuse(tmp_path, with_header(text, b""), "no JSON object")


@settings(deadline=None)
@given(content=st.binary(max_size=60), offset=st.integers(0, 400), cut=st.integers(0, 3))
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, offset: int, cut: int
) -> None:
    """Any bytes put anywhere: either an error of ours, or a header that accounts for every byte of the file."""
    path = tmp_path_factory.getbasetemp()
    file = bytearray(pack(GOOD))
    offset %= len(file)
    file[offset : offset + cut] = content
    try:
        header = read(path, bytes(file))
    except CheckpointError:
        return
    first = 8 + struct.unpack("<Q", file[:8])[0]
    assert first + sum(tensor.nbytes for tensor in header.tensors) == len(file)
    assert all(tensor.nbytes == tensor.nbytes // SIZES[tensor.dtype] * SIZES[tensor.dtype] for tensor in header.tensors)
