"""A checkpoint that has been opened: what is stored, and how to read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zamba_compat.errors import CheckpointError

from .files import FileState, open_regular, read_small, state_of
from .headers import TensorInfo, read_header
from .location import SUFFIXES, Format
from .strict_json import listed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """One file of weights: its name, its real path, its size in bytes, its modification time in ns."""

    name: str
    path: Path
    size: int
    mtime_ns: int


class StoredBytes(NamedTuple):
    """Where a tensor's bytes lie: the file, the first byte in it, how many."""

    path: Path
    offset: int
    nbytes: int


class Seen(NamedTuple):
    """A file as it was when it was opened."""

    name: str
    path: Path
    state: FileState
    digest: str  # sha256 of a shard's header ("" of a pickled one), of any other file all of it


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; use it as a context manager, and read no tensor after its end.

    Attributes:
        path: its directory, links resolved.
        config: config.json as written; {} where a single pickled file has none beside it.
        tensors: what is stored, by name, in stored order.
        shards: the files of weights.
        format: "safetensors" or "torch".
        metadata: of the index and of the files' headers; sums over tensors left out.
        warnings: what a person should know and nothing was refused for.
        companions: the files beside the weights that a conversion copies.
        identity: name (a hub id or the directory's name), revision (in the hub cache) and files (name -> sha256: of
            the header for shards, of all of it for the rest); nothing in it tells where on this machine it lies.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    shards: tuple[Shard, ...]
    format: Format
    metadata: dict[str, str]
    warnings: tuple[str, ...]
    companions: tuple[Path, ...]
    identity: dict[str, Any]
    _seen: tuple[Seen, ...] = ()
    _pickled: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _opened: ExitStack = field(default_factory=ExitStack, repr=False)
    _getters: dict[str, Callable[[str], Tensor]] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self._getters.clear()
        self._pickled.clear()
        self._opened.close()

    @property
    def roots(self) -> tuple[Path, ...]:
        """The directories that hold its files: where nothing may be written while it is read."""
        return tuple(dict.fromkeys([self.path, *(shard.path.parent for shard in self.shards)]))

    def read(self, name: str) -> Tensor:
        """The tensor `name`, mapped from its file, not copied. KeyError when nothing has that name.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        info = self.tensors[name]
        if self.format == "torch":
            return self._pickled[name]
        if info.shard not in self._getters:
            from safetensors import SafetensorError, safe_open

            path = self._path_of(info)
            try:
                opened = self._opened.enter_context(safe_open(path, "pt", device="cpu"))
            except (OSError, SafetensorError) as error:
                remedy = "Get the file again."
                raise CheckpointError(f"It cannot be read: {error}.", where=str(path), remedy=remedy) from error
            self._getters[info.shard] = opened.get_tensor
        return self._getters[info.shard](name)

    def stored_bytes(self, name: str) -> StoredBytes | None:
        """Where the tensor `name` lies, to copy it from file to file; None in pickled files."""
        info = self.tensors[name]
        return None if info.offset < 0 else StoredBytes(self._path_of(info), info.offset, info.nbytes)

    def verify_unchanged(self) -> None:
        """Compare every file with what it was when it was opened: identity, size, times; the hash of headers, index
        and config.

        Among the times is that of the last change, which every write moves, also where the modification time is set
        back. The tensors themselves are not read again.

        Raises:
            CheckpointError: naming every file that changed.
        """
        changed = [seen.name for seen in self._seen if not _is_unchanged(seen)]
        if changed:
            raise CheckpointError(
                f"Files changed while they were read: {listed(changed)}.",
                where=str(self.path),
                remedy="Run it again when nothing writes there.",
            )

    def _path_of(self, info: TensorInfo) -> Path:
        return next(shard.path for shard in self.shards if shard.name == info.shard)


def _is_unchanged(seen: Seen) -> bool:
    where = str(seen.path)
    try:
        fd = open_regular(seen.path, where=where)
        try:
            if state_of(fd) != seen.state:
                return False
            if not seen.digest:
                return True
            if seen.name.endswith(SUFFIXES["safetensors"]):
                return read_header(fd, shard=seen.name, where=where).digest == seen.digest
        finally:
            os.close(fd)
        return read_small(seen.path, where=where)[2] == seen.digest
    except CheckpointError:
        return False
