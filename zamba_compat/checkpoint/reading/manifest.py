"""Read a manifest: its form is checked, and no name in it leads out of the checkpoint's directory."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from zamba_compat.checkpoint.dtypes import SIZES
from zamba_compat.errors import CheckpointError

from .files import check_shard_name, read_small, resolve_inside
from .headers import TensorInfo
from .location import MANIFEST, SUFFIXES
from .strict_json import listed, parse_object

# 1: tensors and sizes of shards. 2: also headers, every other file, and the digest of the manifest itself.
FORMAT_VERSION = 2
_REMEDY = "The manifest is damaged or was changed: get the checkpoint again from where it was written."


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        version: of its format.
        package: name and version of the package that wrote it.
        sources: what the checkpoint was made of, see `Checkpoint.identity`.
        shards: shard -> size of the file, bytes. Of a checkpoint with one pickled file, that is in `files` instead.
        headers: shard -> sha256 of its header with the length before it; empty in version 1.
        files: any other file -> size in bytes and sha256; None in version 1, which does not say.
        tensors: name -> dtype, shape and shard (its offset is not told), in the manifest's order.
        sha256: tensor -> hash of its bytes.
    """

    version: int
    package: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]
    shards: Mapping[str, int]
    headers: Mapping[str, str]
    files: Mapping[str, tuple[int, str]] | None
    tensors: Mapping[str, TensorInfo]
    sha256: Mapping[str, str]


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint in `directory` (links resolved).

    Raises:
        CheckpointError: it cannot be read, is no manifest or one of a newer format, does not have its own digest, or
            names files outside of the directory.
    """
    where = str(directory / MANIFEST)
    data, _, _ = read_small(resolve_inside(directory, MANIFEST, where=where), where=where)
    content = parse_object(data, where=where, what="manifest")
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError("It has no format_version.", where=where, remedy=_REMEDY)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"It is of format {version}; this release knows up to {FORMAT_VERSION}.",
            where=where,
            remedy="Update zamba_compat to a release that knows it.",
        )
    if version > 1 and content.get("digest") != digest_of(content):
        raise CheckpointError("It does not have the digest it says.", where=where, remedy=_REMEDY)
    try:
        found = _parsed(content, version)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError("It does not have the form of a manifest.", where=where, remedy=_REMEDY) from error
    for shard in found.shards:
        check_shard_name(shard, SUFFIXES["safetensors"], where=where)
    outside = [name for name in found.files or () if not _is_inside(name)]
    if outside:
        raise CheckpointError(f"It names files elsewhere: {listed(outside)}.", where=where, remedy=_REMEDY)
    return found


def digest_of(content: Mapping[str, Any]) -> str:
    """sha256 (hex) of a manifest without its "digest": of its JSON with sorted keys, ASCII, no spaces."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parsed(content: Mapping[str, Any], version: int) -> Manifest:
    shards = {shard: _size(size) for shard, size in content["shards"].items()}
    files = None
    if version > 1:
        files = {name: (_size(entry["size"]), _hash(entry["sha256"])) for name, entry in content["files"].items()}
    pickled = [name for name in files or () if name.endswith(SUFFIXES["torch"])]
    tensors = {name: _tensor(name, entry, {*shards, *pickled}) for name, entry in content["tensors"].items()}
    headers = {shard: _hash(content["headers"][shard]) for shard in shards} if version > 1 else {}
    if not tensors or not all(isinstance(source, dict) for source in content["sources"]):
        raise ValueError
    return Manifest(
        version=version,
        package=dict(content["package"]),
        sources=tuple(content["sources"]),
        shards=shards,
        headers=headers,
        files=files,
        tensors=tensors,
        sha256={name: _hash(entry["sha256"]) for name, entry in content["tensors"].items()},
    )


def _tensor(name: str, entry: Mapping[str, Any], files: Collection[str]) -> TensorInfo:
    shape = tuple(_size(size) for size in entry["shape"])
    if entry["shard"] not in files:
        raise ValueError
    return TensorInfo(name, entry["dtype"], shape, entry["shard"], -1, prod(shape) * SIZES[entry["dtype"]])


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64:
        raise ValueError
    return value


def _is_inside(name: str) -> bool:
    """Whether it is a bare name, or one in a single subdirectory, by the rules of every operating system."""
    parts = name.split("/")
    return len(parts) <= 2 and all(part not in ("", ".", "..") and not set(part) & {"\\", ":", "\0"} for part in parts)
