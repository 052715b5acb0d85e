"""Write a checkpoint's shards in one pass, with at most a few tensors in memory."""

from __future__ import annotations

import json
import re
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from math import inf, prod
from typing import TYPE_CHECKING

from zamba_compat.checkpoint.dtypes import RANK, SIZES, bytes_of, from_torch
from zamba_compat.checkpoint.reading.files import write_all
from zamba_compat.checkpoint.reading.headers import TensorInfo
from zamba_compat.checkpoint.reading.location import INDEX_SUFFIX
from zamba_compat.checkpoint.reading.stored import StoredBytes
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.errors import CheckpointError

from .pipeline import WORKING_MEMORY, Examined, Pipeline
from .staging import Staging

if TYPE_CHECKING:
    from torch import Tensor

BEGUN = 2**24  # bytes of tensors begun before it is their turn: a crowd of small ones, or a large one
_CROWD = 32  # of them at most: even the smallest result may keep address space for a large one
_PATTERN, _STEM = "{stem}{suffix}.safetensors", "model"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # decimal, as the hub's


@dataclass(frozen=True)
class Output:
    """A tensor to write: its name, dtype (the word of safetensors), shape, and how it is made."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    recipe: Recipe

    @property
    def nbytes(self) -> int:
        """Its size, bytes."""
        return prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        outputs: every tensor, in the order of `weight_map`.
        sha256: tensor -> hash of its bytes, hex.
        weight_map: tensor -> shard.
        shards: shard -> size of the file, bytes.
        headers: shard -> hash of its header with the length before it, hex.
        total_size: of all tensors, bytes.
        nonfinite: the tensors that hold NaN or infinity.
    """

    outputs: tuple[Output, ...]
    sha256: Mapping[str, str]
    weight_map: Mapping[str, str]
    shards: Mapping[str, int]
    headers: Mapping[str, str]
    total_size: int
    nonfinite: tuple[str, ...]


def parse_size(size: str) -> int:
    """Bytes of a size such as "5GB", "1.5 MB" or "1000"; a KB has 1000 bytes. ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B|)\s*", size, re.ASCII | re.IGNORECASE)
    unit = match[2].upper() if match else ""
    value = float(match[1]) * _UNITS["" if unit == "B" else unit] if match else 0.0
    if not 1 <= value < inf:
        raise ValueError(f"{size!r} is no size; write a number and KB, MB, GB or TB, such as 5GB")
    return int(value)


def plan_shards(outputs: Sequence[Output], max_shard_size: int) -> list[list[Output]]:
    """Distribute tensors over shards by the hub's rule: in order, a shard is full when the next one would exceed it.

    A tensor larger than `max_shard_size` (bytes) gets a shard of its own.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    by_name = {output.name: output for output in outputs}
    if len(by_name) < len(outputs):
        raise ValueError("two outputs have one name")
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda output: output.nbytes,
        filename_pattern=_PATTERN.replace("{stem}", _STEM),
        max_shard_size=max_shard_size,
    )
    return [[by_name[name] for name in names] for names in split.filename_to_tensors.values()]


def shard_names(count: int, stem: str = _STEM) -> list[str]:
    """The names of `count` shards: model.safetensors, or model-00001-of-000NN.safetensors."""
    if count == 1:
        return [_PATTERN.format(stem=stem, suffix="")]
    return [_PATTERN.format(stem=stem, suffix=f"-{number:05}-of-{count:05}") for number in range(1, count + 1)]


def shard_sizes(outputs: Sequence[Output], max_shard_size: int) -> dict[str, int]:
    """The shards that `write_shards` makes of them -> bytes of tensors in each."""
    shards = plan_shards(outputs, max_shard_size)
    sizes = (sum(output.nbytes for output in shard) for shard in shards)
    return dict(zip(shard_names(len(shards)), sizes, strict=True))


def peak_bytes(outputs: Sequence[Output], tensors: Mapping[str, TensorInfo]) -> int:
    """An estimate of the anonymous memory that `write_shards` needs beyond the libraries', bytes.

    Sources are mapped from their files and count only where they are used in a computation, which may widen them to
    float32 (counted as twice their size).
    """
    computed = [
        2 * sum(tensors[source].nbytes for source in output.recipe.sources) + output.nbytes
        for output in outputs
        if output.recipe.make is not None
    ]
    return WORKING_MEMORY + max(computed, default=0)


def header_of(outputs: Sequence[Output], metadata: Mapping[str, str]) -> tuple[bytes, list[Output]]:
    """The header of a shard, its length before it, and the order of the tensors after it.

    Byte for byte what safetensors writes: by falling dtype size, then by name, so that every tensor is aligned.
    """
    order = sorted(outputs, key=lambda output: (-RANK[output.dtype], output.name.encode()))
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for output in order:
        end = at + output.nbytes
        content[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def write_shards(
    staging: Staging,
    outputs: Sequence[Output],
    read: Callable[[str], Tensor],
    *,
    max_shard_size: int,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], object] | None = None,
    stored_bytes: Callable[[str], StoredBytes | None] | None = None,
    stem: str = _STEM,
) -> Written:
    """Write the tensors, and the index where there are several shards.

    Args:
        staging: where to.
        outputs: the tensors; each shard holds consecutive ones.
        read: a source tensor by its name, as recipes name it.
        max_shard_size: bytes of tensors per shard.
        metadata: for the headers, beside "format": "pt".
        progress: called with the number of bytes after each piece that is written.
        stored_bytes: where a source lies in a file, so that unchanged tensors need not be mapped; see
            `Checkpoint.stored_bytes`.
        stem: what the files' names begin with.

    Raises:
        DestinationError: too little room, before anything is written; or writing failed.
        CheckpointError: a source cannot be read, or a recipe gives another dtype or shape than was announced.
    """
    shards = plan_shards(outputs, max_shard_size)
    names = shard_names(len(shards), stem)
    headers = [header_of(shard, {"format": "pt", **(metadata or {})}) for shard in shards]
    staging.require(sum(output.nbytes for output in outputs) + sum(len(header) for header, _ in headers))
    examined: dict[str, Examined] = {}
    sizes: dict[str, int] = {}
    with Pipeline(progress) as pipeline:
        for name, (header, order) in zip(names, headers, strict=True):
            with staging.create(name) as file, closing(_begun(order, read)) as begun:
                fd = file.fileno()
                write_all(fd, header)
                for output, pieces in begun:
                    result = examined[output.name] = Examined(output.dtype)
                    _write(pipeline, fd, output, pieces, read, stored_bytes, result)
                pipeline.leave()
                sizes[name] = file.tell()
        pipeline.drain()
    weight_map = {output.name: name for name, shard in zip(names, shards, strict=True) for output in shard}
    total = sum(output.nbytes for output in outputs)
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        staging.write(_PATTERN.format(stem=stem, suffix="") + INDEX_SUFFIX, json.dumps(index, indent=2) + "\n")
    return Written(
        outputs=tuple(outputs),
        sha256={output.name: examined[output.name].sha256.hexdigest() for output in outputs},
        weight_map=weight_map,
        shards=sizes,
        headers={name: sha256(header).hexdigest() for name, (header, _) in zip(names, headers, strict=True)},
        total_size=total,
        nonfinite=tuple(output.name for output in outputs if not examined[output.name].is_finite),
    )


def _begun(
    order: Sequence[Output], read: Callable[[str], Tensor]
) -> Generator[tuple[Output, Iterator[Tensor] | None], None, None]:
    """Each output and the pieces it comes in; the next ones are begun, so that nobody waits between two.

    A thread of its own takes the first piece of each, which may have to wait for what the others depend on.
    """
    following, begun = iter(order), deque[tuple[Output, "Future[Iterator[Tensor]] | None"]]()
    ahead = ThreadPoolExecutor(1, "begin")
    try:
        while True:
            while len(begun) < 2 or (
                len(begun) <= _CROWD and sum(output.nbytes for output, _ in islice(begun, 1, None)) < BEGUN
            ):
                output = next(following, None)
                if output is None:
                    break
                pieces = output.recipe.pieces
                first = None if pieces is None else ahead.submit(_first, pieces(*map(read, output.recipe.sources)))
                begun.append((output, first))
            if not begun:
                return
            output, first = begun.popleft()
            yield output, None if first is None else first.result()
    finally:
        ahead.shutdown(cancel_futures=True)


def _first(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same pieces, the first of them there."""
    return chain(list(islice(pieces, 1)), pieces)


def _write(
    pipeline: Pipeline,
    fd: int,
    output: Output,
    pieces: Iterator[Tensor] | None,
    read: Callable[[str], Tensor],
    stored_bytes: Callable[[str], StoredBytes | None] | None,
    examined: Examined,
) -> None:
    recipe = output.recipe
    if recipe.make is None and stored_bytes is not None:
        source = stored_bytes(recipe.sources[0])
        if source is not None:
            if source.nbytes != output.nbytes:
                raise _not_announced(output, f"{source.nbytes} bytes")
            pipeline.copy(fd, source, examined)
            return
    if pieces is not None:
        _stream(pipeline, fd, output, pieces, examined)
        return
    tensor = recipe.made(read)
    check_made(output, tensor)
    pipeline.append(fd, bytes_of(tensor), examined)
    if recipe.make is not None:
        pipeline.drain()  # so that no computed tensor is kept beside the next one


def _stream(pipeline: Pipeline, fd: int, output: Output, pieces: Iterator[Tensor], examined: Examined) -> None:
    def checked() -> Iterator[memoryview]:
        for piece in pieces:
            if from_torch(piece.dtype) != output.dtype:
                raise _not_announced(output, str(piece.dtype))
            yield bytes_of(piece)

    written = pipeline.stream(fd, checked(), examined)
    if written != output.nbytes:
        raise _not_announced(output, f"{written} bytes")


def check_made(output: Output, tensor: Tensor) -> None:
    """Refuse a tensor of another dtype or shape than was announced. Raises CheckpointError."""
    if from_torch(tensor.dtype) != output.dtype or tuple(tensor.shape) != output.shape:
        raise _not_announced(output, f"{tensor.dtype} {tuple(tensor.shape)}")


def _not_announced(output: Output, found: str) -> CheckpointError:
    return CheckpointError(
        f"The recipe gives {found}, not {output.dtype} {output.shape}.",
        where=output.name,
        remedy="This is a fault in zamba_compat; please report it.",
    )
