"""Open a checkpoint safely: its files are checked from headers alone, before a tensor is read.

What the tensors mean, and whether they make up the model that the config describes, is not judged here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.layout.config import read_config

from .files import open_regular, read_small, refuse_case_collisions, resolve_inside, state_of
from .headers import TensorInfo, read_header
from .location import SUFFIXES, Location, companions, locate
from .stored import Checkpoint, Seen, Shard, StoredBytes
from .strict_json import listed
from .weight_map import compare, read_index, refuse_missing_shards

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "Shard", "StoredBytes", "TensorInfo", "open_checkpoint"]


def open_checkpoint(source: str | os.PathLike[str] | Location, *, allow_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint and check it from its headers alone; no tensor of a safetensors file is read.

    Args:
        source: a directory, an index, a single file of weights, a name on the hub; or what `locate` made of it.
        allow_pickle: read .bin and .pt files too, their tensors and nothing else.

    Raises:
        CheckpointError: files, index or headers that are missing, unsafe, damaged or contradict each other.
        ConfigError: a config that is missing or no JSON object.
    """
    location = source if isinstance(source, Location) else locate(source, allow_pickle=allow_pickle)
    if location.format == "torch" and not allow_pickle:
        raise CheckpointError(
            "These weights are pickled, and a pickle can run code when it is read.",
            where=str(location.file),
            remedy="Convert them to safetensors, or pass --allow-pickle to read the tensors and nothing else.",
        )
    config, seen = _read_config(location)
    metadata: dict[str, str] = {}
    weight_map: Mapping[str, str] | None = None
    names: tuple[str, ...] = (location.file.name,)
    if location.is_index:
        index = read_index(
            resolve_inside(location.directory, location.file.name, where=str(location.file)),
            SUFFIXES[location.format],
            where=str(location.file),
        )
        weight_map, names = index.weight_map, index.shards
        metadata.update(index.metadata)
        seen.append(Seen(location.file.name, Path(os.path.realpath(location.file)), index.state, index.digest))
        _refuse_rival(location, names)
        refuse_missing_shards(location.directory, names, where=str(location.file))

    pickled: dict[str, Tensor] = {}
    infos: list[TensorInfo] = []
    shards: list[Shard] = []
    for name in names:
        file, found, header_metadata = _read_shard(location, name, pickled)
        infos += found
        metadata |= header_metadata
        seen.append(file)
        shards.append(Shard(name, file.path, file.state.size, file.state.mtime_ns))
    if not infos:
        raise CheckpointError("No tensor is stored.", where=str(location.file), remedy="Is it the right file?")
    if weight_map is not None:
        compare(weight_map, infos, where=str(location.file))

    copied, warnings = _look_around(location, names, config)
    identity = {
        "name": location.name,
        "revision": location.revision,
        "files": {file.name: file.digest for file in seen},
    }
    return Checkpoint(
        path=location.directory,
        config=config,
        tensors={info.name: info for info in infos},
        shards=tuple(shards),
        format=location.format,
        metadata=metadata,
        warnings=warnings,
        companions=copied,
        identity=identity,
        _seen=tuple(seen),
        _pickled=pickled,
    )


def _read_config(location: Location) -> tuple[dict[str, Any], list[Seen]]:
    path = location.directory / "config.json"
    if not os.path.lexists(path):
        if location.format == "torch" and not location.is_index:
            return {}, []
        remedy = "Get config.json from the checkpoint's source."
        raise ConfigError("There is no config.json.", where=str(location.directory), remedy=remedy)
    real = resolve_inside(location.directory, path.name, where=str(path))
    _, state, digest = read_small(real, where=str(path))
    return read_config(path), [Seen(path.name, real, state, digest)]


def _read_shard(
    location: Location, name: str, pickled: dict[str, Tensor]
) -> tuple[Seen, Sequence[TensorInfo], dict[str, str]]:
    where = str(location.directory / name)
    path = resolve_inside(location.directory, name, where=str(location.file))
    fd = open_regular(path, where=where)
    try:
        state = state_of(fd)
        if location.format == "safetensors":
            header = read_header(fd, shard=name, where=where)
            return Seen(name, path, state, header.digest), header.tensors, header.metadata
    finally:
        os.close(fd)
    from .pickled import describe, load

    if state.size == 0:
        raise CheckpointError("The file is empty.", where=where, remedy="Incomplete download? Get the file again.")
    tensors = load(path, where=where)
    infos = describe(tensors, shard=name, where=where)
    pickled.update(tensors)
    return Seen(name, path, state, ""), infos, {}


def _refuse_rival(location: Location, shards: tuple[str, ...]) -> None:
    if location.rival is not None and location.rival.name not in shards:
        raise CheckpointError(
            f"An index and a single {location.rival.name} lie side by side, and both hold a model.",
            where=str(location.directory),
            remedy=f"Say which: give {location.file} or {location.rival}.",
        )


def _look_around(
    location: Location, shards: tuple[str, ...], config: Mapping[str, Any]
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    copied, stray, left = companions(location.directory, frozenset(shards))
    refuse_case_collisions(
        ["config.json", *shards, *(str(path.relative_to(location.directory)) for path in copied)],
        where=str(location.directory),
    )
    warnings = []
    if stray:
        warnings.append(f"Weights that do not belong to {location.file.name} are ignored: {listed(list(stray))}.")
    if left:
        warnings.append(f"Not copied, being code, directories or no files of this directory: {listed(list(left))}.")
    if "auto_map" in config:
        warnings.append("auto_map in config.json names code; it is never run.")
    return copied, tuple(warnings)
