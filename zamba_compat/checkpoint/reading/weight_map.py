"""The index of a sharded checkpoint, and whether the shards hold exactly what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from zamba_compat.errors import CheckpointError

from .files import FileState, check_shard_name, read_small, refuse_case_collisions
from .headers import TensorInfo
from .strict_json import listed, parse_object

# Sums over the tensors: wrong for anything made of them, so they are not handed on.
_SUMS = ("total_size", "total_parameters")


@dataclass(frozen=True)
class Index:
    """An index file.

    Attributes:
        weight_map: tensor -> shard, as written.
        shards: the shards' names, sorted.
        metadata: what else it says, as text.
        state: of the file when it was read.
        digest: sha256 of the file, hex.
    """

    weight_map: Mapping[str, str]
    shards: tuple[str, ...]
    metadata: dict[str, str]
    state: FileState
    digest: str


def read_index(path: Path, suffixes: tuple[str, ...], *, where: str) -> Index:
    """Read an index. `suffixes` are the endings its shards may have.

    Raises:
        CheckpointError: no readable JSON, no weight_map from names to names, shard names that are paths, are of
            another kind, or differ in case alone.
    """
    data, state, digest = read_small(path, where=where)
    content = parse_object(data, where=where, what="index")
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse("weight_map is missing or maps nothing.", where, "Write the index again, or give the single file.")
    odd = [name for name, shard in weight_map.items() if not isinstance(shard, str)]
    if odd:
        _refuse(f"weight_map gives no shard name for {listed(odd)}.", where, "Write the index again.")
    metadata = content.get("metadata")
    if not isinstance(metadata, (dict, type(None))):
        _refuse("metadata is no object.", where, "Remove it, or write the index again.")
    shards = tuple(sorted(set(weight_map.values())))
    for shard in shards:
        check_shard_name(shard, suffixes, where=where)
    refuse_case_collisions(shards, where=where)
    known = {key: str(value) for key, value in (metadata or {}).items() if key not in _SUMS}
    return Index(weight_map, shards, known, state, digest)


def refuse_missing_shards(directory: Path, shards: Iterable[str], *, where: str) -> None:
    """Raises CheckpointError that names every shard that does not exist."""
    missing = [shard for shard in shards if not (directory / shard).exists()]
    if missing:
        what = f"{len(missing)} shards do not exist: {listed(missing, most=1000)}."
        _refuse(what, where, "Incomplete download? Get them from the checkpoint's source.")


def compare(weight_map: Mapping[str, str], stored: Iterable[TensorInfo], *, where: str) -> None:
    """Compare the index with what the shards' headers say.

    Raises:
        CheckpointError: a tensor in two shards, or one that the index or its shard lacks.
    """
    found: dict[str, str] = {}
    twice = []
    for tensor in stored:
        other = found.setdefault(tensor.name, tensor.shard)
        if other != tensor.shard:
            twice.append(f"{tensor.name} in {other} and {tensor.shard}")
    if twice:
        _refuse(f"Tensors are stored twice: {listed(twice)}.", where, "Keep the right one only.")
    lacking = [f"{name} in {shard}" for name, shard in weight_map.items() if found.get(name) != shard]
    if lacking:
        what = f"The index names {len(lacking)} tensors that the shard it gives does not hold: {listed(lacking)}."
        _refuse(what, where, "Write the index again, or get the shards that belong to it.")
    extra = [f"{name} in {shard}" for name, shard in found.items() if name not in weight_map]
    if extra:
        what = f"The shards hold {len(extra)} tensors that the index lacks: {listed(extra)}."
        _refuse(what, where, "Write the index again, or get the shards that belong to it.")


def _refuse(what: str, where: str, remedy: str) -> NoReturn:
    raise CheckpointError(what, where=where, remedy=remedy)
