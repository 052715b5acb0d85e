"""Write one pickled state dict as torch.save does, with at most one computed tensor in memory.

What Zyphra's own code reads: the standalone repository's models save and load a pytorch_model.bin, never safetensors.

The format: a zip archive without compression of NAME/data.pkl (an OrderedDict of tensors that name their storages),
NAME/byteorder, NAME/data/N (the storages' bytes) and NAME/version. Source: torch.serialization (`_save`) and
caffe2/serialize/inline_container.h (records start at multiples of 64 bytes, filled up by an extra field "FB").
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from math import prod
from pickle import Pickler
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.dtypes import bytes_of, in_chunks, to_torch
from zamba_compat.checkpoint.reading.files import write_all
from zamba_compat.errors import CheckpointError

from .pipeline import Examined
from .staging import Staging
from .writer import Output, Written, check_made

if TYPE_CHECKING:
    from torch import Tensor

NAME = "pytorch_model.bin"
_FOLDER = NAME.removesuffix(".bin")
_VERSION = b"3\n"
# What torch calls the storages of a dtype, by the words of safetensors.
_STORAGES = {
    "F64": "Double",
    "F32": "Float",
    "F16": "Half",
    "BF16": "BFloat16",
    "I64": "Long",
    "I32": "Int",
    "I16": "Short",
    "I8": "Char",
    "U8": "Byte",
    "BOOL": "Bool",
}
_ALIGNMENT = 64
_ROOM = 512  # bytes of the archive per tensor and record beside its own: headers, twice its name, filling


def write_archive(
    staging: Staging,
    outputs: Sequence[Output],
    read: Callable[[str], Tensor],
    *,
    progress: Callable[[int], object] | None = None,
) -> Written:
    """Write the tensors as pytorch_model.bin; the arguments are those of `writer.write_shards`.

    Raises:
        DestinationError: too little room, before anything is written; or writing failed.
        CheckpointError: a dtype that torch has no storage class for, a source that cannot be read, or a recipe that
            gives another dtype or shape than was announced.
    """
    pickled = pickle_of(outputs)
    total = sum(output.nbytes for output in outputs)
    staging.require(total + len(pickled) + _ROOM * (len(outputs) + 4))
    examined = {output.name: Examined(output.dtype) for output in outputs}

    def content(output: Output) -> Iterator[memoryview]:
        tensor = output.recipe.made(read)
        check_made(output, tensor)
        for piece in in_chunks(bytes_of(tensor)):
            examined[output.name].take(piece)
            yield piece
            if progress is not None:
                progress(len(piece))

    with staging.create(NAME) as file:
        target = _Counted(file.fileno())
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            _record(archive, target, "data.pkl", [memoryview(pickled)])
            _record(archive, target, "byteorder", [memoryview(b"little")])
            for number, output in enumerate(outputs):
                _record(archive, target, f"data/{number}", content(output))
            _record(archive, target, "version", [memoryview(_VERSION)])
    staging.files[NAME] = target.size, target.digest.hexdigest()
    return Written(
        outputs=tuple(outputs),
        sha256={name: one.sha256.hexdigest() for name, one in examined.items()},
        weight_map=dict.fromkeys(examined, NAME),
        shards={},
        headers={},
        total_size=total,
        nonfinite=tuple(name for name, one in examined.items() if not one.is_finite),
    )


def pickle_of(outputs: Sequence[Output]) -> bytes:
    """data.pkl: an OrderedDict name -> tensor whose storage is data/N, N its number, as torch.save pickles it.

    Raises:
        CheckpointError: a dtype that torch has no storage class for.
    """
    stream = io.BytesIO()
    content = OrderedDict((output.name, _Pickled(number, output)) for number, output in enumerate(outputs))
    _Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


class _Storage:
    """Stands for the storage of a tensor that is not there."""

    def __init__(self, number: int, output: Output) -> None:
        if output.dtype not in _STORAGES:
            name = str(to_torch(output.dtype)).removeprefix("torch.")
            raise CheckpointError(
                f"A pickled state dict holds no {name} here.",
                where=output.name,
                remedy="Write safetensors (--format safetensors), or leave the tensor out.",
            )
        self.key, self.kind, self.elements = str(number), f"{_STORAGES[output.dtype]}Storage", prod(output.shape)


class _Pickled:
    """Stands for a tensor; pickled as one."""

    def __init__(self, number: int, output: Output) -> None:
        self._storage, self._shape = _Storage(number, output), output.shape

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        strides = tuple(prod(self._shape[axis + 1 :]) for axis in range(len(self._shape)))
        return _rebuild_tensor_v2, (self._storage, 0, self._shape, strides, False, OrderedDict())


class _Pickler(Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        import torch

        return "storage", getattr(torch, obj.kind), obj.key, "cpu", obj.elements


class _Counted:
    """What zipfile writes to: hashed and counted. It cannot seek, so that no byte is written twice."""

    def __init__(self, fd: int) -> None:
        self._fd, self.digest, self.size = fd, sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        write_all(self._fd, data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _record(archive: zipfile.ZipFile, target: _Counted, name: str, content: Iterable[memoryview]) -> None:
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")  # dated 1980: the same tensors give the same file
    info.flag_bits |= 0x08  # sizes and CRC follow the content
    before = len(info.FileHeader(zip64=True)) + 4
    filling = -(target.size + before) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", filling) + b"Z" * filling
    with archive.open(info, "w", force_zip64=True) as record:
        for piece in content:
            record.write(piece)
