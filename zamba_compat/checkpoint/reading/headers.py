"""Read and check the header of a safetensors file: every byte of the file belongs to exactly one tensor.

The format: 8 bytes, the length N of the header as a little-endian integer; N bytes of JSON, an object of
name -> {"dtype", "shape", "data_offsets": [begin, end]} and "__metadata__"; then the tensors, offsets counted from
where they begin. Source: README.md of huggingface/safetensors, "Format".
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Any

from zamba_compat.checkpoint.dtypes import SIZES
from zamba_compat.errors import CheckpointError

from .file_kinds import LENGTH, refuse_other_kinds
from .files import read_at
from .strict_json import LIMIT, listed, parse_object

_INCOMPLETE = "Incomplete download? Get the file again."
_DAMAGED = "The file is damaged: download or write it again."
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor.

    Attributes:
        name: its key.
        dtype: in the words of safetensors: "BF16", "F32", "U8".
        shape: its size in each dimension.
        shard: the name of the file that holds it.
        offset: where it begins in that file, bytes; -1 in pickled files.
        nbytes: its size, bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What the header of one safetensors file says.

    Attributes:
        tensors: in the order of their bytes.
        metadata: the file's "__metadata__".
        digest: sha256 of the header, hex.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    digest: str


def read_header(fd: int, *, shard: str, where: str) -> Header:
    """The header of an open safetensors file, checked against the file's size. Reads no tensor.

    Args:
        fd: the file, open for reading.
        shard: the file's name, for `TensorInfo.shard`.
        where: what to call the file in errors.

    Raises:
        CheckpointError: a file that cannot be read, is of another kind, empty or truncated, trailing bytes, a header
            that is too long or no JSON object or names a tensor twice, an unknown dtype, a size that does not follow
            from dtype and shape, tensors that overlap or leave a hole.
    """
    size = os.fstat(fd).st_size
    if size == 0:
        raise CheckpointError("The file is empty.", where=where, remedy=_INCOMPLETE)
    refuse_other_kinds(read_at(fd, LENGTH, 0, where=where), where=where)
    data = read_at(fd, 8, 0, where=where)
    length = struct.unpack("<Q", data)[0] if len(data) == 8 else 0
    if 8 + length > size or length < 2:
        raise CheckpointError(
            f"It does not start with a safetensors header: {length} bytes of header in a file of {size}.",
            where=where,
            remedy=_INCOMPLETE,
        )
    if length > LIMIT:
        raise CheckpointError(
            f"The header has {length} bytes, more than the {LIMIT} that are read here.",
            where=where,
            remedy="Write the file again without the large metadata.",
        )
    data = read_at(fd, length, 8, where=where)
    if not data.startswith(b"{"):
        raise CheckpointError("It is no safetensors file: its header is no JSON object.", where=where, remedy=_DAMAGED)
    content = parse_object(data, where=where, what="header")
    metadata = _metadata(content.pop("__metadata__", None), where)
    first = 8 + length
    tensors = sorted(
        (_tensor(name, entry, first, shard, where) for name, entry in content.items()),
        key=lambda tensor: (tensor.offset, tensor.offset + tensor.nbytes),
    )
    _check_layout(tensors, first, size, where)
    return Header(tuple(tensors), metadata, sha256(data).hexdigest())


def _metadata(content: Any, where: str) -> dict[str, str]:
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise CheckpointError("__metadata__ maps names to something other than text.", where=where, remedy=_DAMAGED)
    return content


def _tensor(name: str, entry: Any, first: int, shard: str, where: str) -> TensorInfo:
    def refuse(what: str, remedy: str = _DAMAGED) -> CheckpointError:
        return CheckpointError(what, where=f"{where}, tensor {listed([name])}", remedy=remedy)

    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise refuse("It is not described by dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        known = ", ".join(SIZES)
        raise refuse(f"The dtype {listed([str(dtype)])} is not known here.", f"Save it as one of {known}.")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_size, shape)):
        raise refuse("Its shape is no list of up to eight sizes.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise refuse("Its data_offsets are not two positions in the file.")
    begin, end = offsets
    nbytes = prod(shape) * SIZES[dtype]
    if nbytes != end - begin:
        raise refuse(f"{dtype} of shape {tuple(shape)} takes {nbytes} bytes, not the {end - begin} it is given.")
    return TensorInfo(name, dtype, tuple(shape), shard, first + begin, nbytes)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_layout(tensors: list[TensorInfo], first: int, size: int, where: str) -> None:
    end, before = first, "the header"
    for tensor in tensors:
        name = listed([tensor.name])
        if tensor.offset < end:
            raise CheckpointError(f"Tensor {name} overlaps {before}.", where=where, remedy=_DAMAGED)
        if tensor.offset > end:
            gap = tensor.offset - end
            raise CheckpointError(f"{gap} bytes between {before} and {name} are a hole.", where=where, remedy=_DAMAGED)
        end, before = tensor.offset + tensor.nbytes, f"tensor {name}"
    if end > size:
        raise CheckpointError(f"The file ends after {size} of {end} bytes.", where=where, remedy=_INCOMPLETE)
    if end < size:
        raise CheckpointError(
            f"{size - end} bytes follow the last tensor; they belong to nothing.", where=where, remedy=_DAMAGED
        )
