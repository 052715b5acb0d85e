"""Open a checkpoint that may be broken: what its headers still say, and every fault on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from zamba_compat.checkpoint.dtypes import SIZES
from zamba_compat.errors import CheckpointError, ConfigError, ZambaCompatError
from zamba_compat.layout.config import read_config

from .files import open_regular, read_at, read_small, resolve_inside
from .headers import TensorInfo, read_header
from .location import SUFFIXES, Location, entries, locate
from .opening import open_checkpoint
from .stored import Checkpoint, Shard
from .strict_json import LIMIT, parse_object
from .weight_map import compare, read_index, refuse_missing_shards

Result = TypeVar("Result")


@dataclass
class Faults:
    """Errors that were caught, each once, in the order they were found."""

    found: list[str] = field(default_factory=list)

    def add(self, fault: ZambaCompatError | str) -> None:
        if str(fault) not in self.found:
            self.found.append(str(fault))

    def attempt(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result | None:
        """The result of the call, or None where it raises an error of this package, which is kept."""
        try:
            return function(*args, **kwargs)
        except ZambaCompatError as error:
            self.add(error)
            return None


@dataclass(frozen=True)
class Opened:
    """A checkpoint, as far as it could be opened.

    Attributes:
        checkpoint: of a broken one, config is {} where config.json cannot be read, and no file is hashed.
        faults: why `open_checkpoint` refuses it, and what else is wrong with its files.
        unreadable: tensors that a header names and that are not read, because their file is damaged.
        names_lost: whether there are files whose tensors' names are unknown: it follows that tensors are missing.
    """

    checkpoint: Checkpoint
    faults: Faults
    unreadable: frozenset[str] = frozenset()
    names_lost: bool = False


def open_as_far(source: str | os.PathLike[str], *, allow_pickle: bool = False) -> Opened:
    """As `open_checkpoint`, with faults listed instead of raised. Tensors of a pickled file are only read when allowed.

    Raises:
        CheckpointError: nothing lies at `source`, or nothing that could be a checkpoint.
    """
    faults = Faults()
    location: Location | None = None
    try:
        location = locate(source, allow_pickle=allow_pickle)
        directory = location.directory
    except ZambaCompatError as error:
        directory = Path(os.path.realpath(source))
        if not any(_weights(directory)):
            raise  # there is nothing to inspect
        faults.add(error)
    checkpoint = None if location is None else faults.attempt(open_checkpoint, location, allow_pickle=allow_pickle)
    if checkpoint is not None:
        return Opened(checkpoint, faults)
    names, lost = _shards(directory, location, faults)
    if location is not None and location.format == "torch":
        names, lost = [], True  # either not allowed, or refused as a whole
    config = faults.attempt(_config, directory) or {}
    infos: list[TensorInfo] = []
    shards: list[Shard] = []
    unreadable: set[str] = set()
    for name in names:
        path = faults.attempt(resolve_inside, directory, name, where=str(directory / name))
        fd = None if path is None else faults.attempt(open_regular, path, where=str(directory / name))
        if path is None or fd is None:
            lost = True
            continue
        try:
            header = faults.attempt(read_header, fd, shard=name, where=str(directory / name))
            found = _as_far(fd, name) if header is None else header.tensors
            if header is None:
                unreadable |= {info.name for info in found}
                lost = lost or not found
            state = os.fstat(fd)
        finally:
            os.close(fd)
        infos += found
        shards.append(Shard(name, path, state.st_size, state.st_mtime_ns))
    if location is not None and location.is_index and location.format == "safetensors":
        faults.attempt(_compare, location, infos)
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        tensors.setdefault(info.name, info)
    return Opened(
        Checkpoint(
            path=directory,
            config=config,
            tensors=tensors,
            shards=tuple(shards),
            format="safetensors",
            metadata={},
            warnings=(),
            companions=(),
            identity={"name": directory.name if location is None else location.name, "revision": None, "files": {}},
        ),
        faults,
        frozenset(unreadable),
        lost or not infos,
    )


def _weights(directory: Path) -> Iterable[str]:
    if directory.is_dir():
        yield from (path.name for path in entries(directory) if path.name.endswith(SUFFIXES["safetensors"]))


def _shards(directory: Path, location: Location | None, faults: Faults) -> tuple[list[str], bool]:
    """The shards to look into: those of the index where it can be read, else every one in the directory; and whether
    there should be more of them."""
    if location is None:
        return list(_weights(directory)), False
    if not location.is_index:
        return [location.file.name], False
    where = str(location.file)
    file = faults.attempt(resolve_inside, directory, location.file.name, where=where)
    index = None if file is None else faults.attempt(read_index, file, SUFFIXES[location.format], where=where)
    if index is None:
        return list(_weights(directory)), False
    faults.attempt(refuse_missing_shards, directory, index.shards, where=where)
    found = [name for name in index.shards if (directory / name).exists()]
    return found, len(found) < len(index.shards)


def _compare(location: Location, infos: list[TensorInfo]) -> None:
    where = str(location.file)
    path = resolve_inside(location.directory, location.file.name, where=where)
    index = read_index(path, SUFFIXES[location.format], where=where)
    looked_into = {info.shard for info in infos}
    # Missing and unreadable shards are told already; here it is about those that were read.
    compare({name: shard for name, shard in index.weight_map.items() if shard in looked_into}, infos, where=where)


def _config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    if not os.path.lexists(file):
        remedy = "Get config.json from the checkpoint's source."
        raise ConfigError("There is no config.json.", where=str(directory), remedy=remedy)
    read_small(resolve_inside(directory, file.name, where=str(file)), where=str(file))
    return read_config(file)


def _as_far(fd: int, shard: str) -> list[TensorInfo]:
    """What a header names that `read_header` refuses; nothing where it is no JSON object."""
    try:
        length = int.from_bytes(read_at(fd, 8, 0, where=shard), "little")
        if length > LIMIT:
            return []
        content = parse_object(read_at(fd, length, 8, where=shard), where=shard, what="header")
    except CheckpointError:
        return []
    found = []
    for name, entry in content.items():
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if name == "__metadata__" or not isinstance(dtype, str) or not isinstance(shape, list):
            continue
        if dtype in SIZES and all(type(size) is int and 0 <= size < 2**63 for size in shape):
            found.append(TensorInfo(name, dtype, tuple(shape), shard, -1, prod(shape) * SIZES[dtype]))
    return found
