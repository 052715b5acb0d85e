"""Verify that a checkpoint is, to the last byte, what this package wrote: the manifest against the files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from zamba_compat.checkpoint.hub.download import fetch
from zamba_compat.checkpoint.hub.names import on_hub
from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.checkpoint.reading.files import FileState, open_regular, read_at, read_piece, resolve_inside, state_of
from zamba_compat.checkpoint.reading.headers import Header, TensorInfo, read_header
from zamba_compat.checkpoint.reading.lenient import Faults
from zamba_compat.checkpoint.reading.location import MANIFEST
from zamba_compat.checkpoint.reading.manifest import Manifest, read_manifest
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import CheckpointError

__all__ = ["Verification", "verify"]

_PIECE = 2**20
_AGAIN = "Get the file again, or write the checkpoint again from its sources."


@dataclass(frozen=True)
class Verification:
    """What the files are, compared with the manifest.

    Attributes:
        directory: as given.
        format_version: of the manifest; None where it cannot be read.
        package: name and version of what wrote it.
        sources: what the checkpoint was made of, as the manifest says; see `Checkpoint.identity`.
        shards, tensors, files: how many the manifest names; files are those beside the shards.
        bytes: of all files that were read.
        faults: everything that is not as it was written.
        warnings: what was not checked.
    """

    directory: str
    format_version: int | None
    package: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]
    shards: int
    tensors: int
    files: int
    bytes: int
    faults: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is the one that was written."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


def verify(directory: str | os.PathLike[str], *, progress: Progress | None = None) -> Verification:
    """Compare a directory with its manifest: every tensor's hash, dtype, shape and shard, every shard's size and
    header, every other file's size and hash, and that nothing is missing or extra.

    Reads every file once, in a few MB of memory, and changes nothing. A digest shows what a fault or a careless hand
    has changed; against someone who writes a new manifest it is no proof.

    Args:
        directory: of the checkpoint; or a model's name on the hub, of which every file is downloaded.
        progress: makes what shows progress.

    Raises:
        CheckpointError: no such directory, or it has no manifest.
    """
    hub = on_hub(os.fsdecode(directory))
    path = Path(os.path.realpath(directory if hub is None else fetch(hub, "everything")))
    try:
        names = sorted(os.listdir(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "Give the directory of a checkpoint."
        raise CheckpointError(f"It cannot be read: {reason}.", where=str(directory), remedy=remedy) from error
    if MANIFEST not in names:
        raise CheckpointError(
            f"There is no {MANIFEST}, so nothing says what these files were.",
            where=str(directory),
            remedy="zamba-compat inspect says what they are; convert-checkpoint writes a copy that has one.",
        )
    faults = Faults()
    manifest = faults.attempt(read_manifest, path)
    if manifest is None:
        return Verification(str(directory), None, {}, (), 0, 0, 0, 0, tuple(faults.found), ())
    warnings = _names(path, names, manifest, faults)
    files = manifest.files or {}
    total = sum(manifest.shards.values()) + sum(size for size, _ in files.values())
    read = 0
    with counting(progress, "verifying", total) as update:
        for shard, size in manifest.shards.items():
            faults.attempt(_shard, path, shard, size, manifest, faults)
            update(size)
            read += size
        for name, (size, digest) in files.items():
            faults.attempt(_file, path, name, size, digest)
            update(size)
            read += size
    return Verification(
        directory=str(directory),
        format_version=manifest.version,
        package=manifest.package,
        sources=manifest.sources,
        shards=len(manifest.shards),
        tensors=len(manifest.tensors),
        files=len(files),
        bytes=read,
        faults=tuple(faults.found),
        warnings=warnings,
    )


def _names(path: Path, names: Iterable[str], manifest: Manifest, faults: Faults) -> tuple[str, ...]:
    """Faults for files that are extra; those that are missing are told when they are opened."""
    known = {MANIFEST, *manifest.shards, *(manifest.files or ())}
    folders = {name.split("/")[0] for name in known if "/" in name}
    found = [name for name in names if name not in folders]
    for folder in sorted(folders):
        if (path / folder).is_dir():
            found += [f"{folder}/{name}" for name in sorted(os.listdir(path / folder))]
    extra = [name for name in found if name not in known]
    hidden = [name for name in extra if name.startswith(".")]
    weights = [name for name in extra if name not in hidden]
    warnings = [f"Hidden files are not checked: {listed(hidden)}."] if hidden else []
    if manifest.files is None:
        weights = [name for name in weights if name.endswith((".safetensors", ".bin", ".pt", ".pth"))]
        warnings.append("The manifest is of format 1: of other files than the weights it says nothing.")
    if weights:
        faults.add(f"{path}: Files that were not written with the checkpoint: {listed(weights)}. Move them away.")
    return tuple(warnings)


def _shard(path: Path, shard: str, size: int, manifest: Manifest, faults: Faults) -> None:
    where = str(path / shard)
    fd = open_regular(resolve_inside(path, shard, where=where), where=where)
    try:
        before = state_of(fd)
        if before.size != size:
            what = f"It has {before.size} bytes; {size} were written."
            raise CheckpointError(what, where=where, remedy=_AGAIN)
        header = read_header(fd, shard=shard, where=where)
        _header(fd, header, where, shard, manifest)
        wrong = [info.name for info in header.tensors if _hash(fd, info, where) != manifest.sha256[info.name]]
        if wrong:
            what = f"{len(wrong)} tensors are not what was written: {listed(wrong)}."
            faults.add(CheckpointError(what, where=where, remedy=_AGAIN))
        _unchanged(fd, before, where)
    finally:
        os.close(fd)


def _header(fd: int, header: Header, where: str, shard: str, manifest: Manifest) -> None:
    stored = {info.name: info for info in header.tensors}
    written = {name: info for name, info in manifest.tensors.items() if info.shard == shard}
    for names, what in (
        ([name for name in written if name not in stored], "are missing"),
        ([name for name in stored if name not in written], "were not written"),
        ([n for n in written if n in stored and _form(written[n]) != _form(stored[n])], "have another dtype or shape"),
    ):
        if names:
            raise CheckpointError(f"{len(names)} tensors {what}: {listed(names)}.", where=where, remedy=_AGAIN)
    length = min((info.offset for info in header.tensors), default=0)
    if manifest.headers and sha256(read_at(fd, length, 0, where=where)).hexdigest() != manifest.headers[shard]:
        raise CheckpointError("Its header is not the one that was written.", where=where, remedy=_AGAIN)


def _form(info: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return info.dtype, info.shape


def _hash(fd: int, info: TensorInfo, where: str) -> str:
    digest, left = sha256(), info.nbytes
    os.lseek(fd, info.offset, os.SEEK_SET)
    while left and (part := read_piece(fd, min(left, _PIECE), where=where)):
        digest.update(part)
        left -= len(part)
    return digest.hexdigest()


def _file(path: Path, name: str, size: int, expected: str) -> None:
    where = str(path / name)
    fd = open_regular(resolve_inside(path, name, where=where), where=where)
    try:
        before = state_of(fd)
        digest = sha256()
        while part := read_piece(fd, _PIECE, where=where):
            digest.update(part)
        if before.size != size or digest.hexdigest() != expected:
            raise CheckpointError("It is not what was written.", where=where, remedy=_AGAIN)
        _unchanged(fd, before, where)
    finally:
        os.close(fd)


def _unchanged(fd: int, before: FileState, where: str) -> None:
    if state_of(fd) != before:
        remedy = "Run it again when nothing writes there."
        raise CheckpointError("It changed while it was read.", where=where, remedy=remedy)
