"""What a checkpoint holds, whether it is whole, and how far its copies, or two checkpoints, lie apart."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from zamba_compat.checkpoint.layouts.components import COMPONENTS, OTHER
from zamba_compat.checkpoint.layouts.survey import Survey, survey
from zamba_compat.checkpoint.progress import Progress
from zamba_compat.checkpoint.reading.lenient import open_as_far
from zamba_compat.checkpoint.resolving.contrast import Comparison, Pair, contrast
from zamba_compat.checkpoint.resolving.copied import Copies, compare_copies
from zamba_compat.checkpoint.resolving.nonfinite import search
from zamba_compat.errors import ZambaCompatError
from zamba_compat.layout.quant_state_names import base_of, format_of, is_weight
from zamba_compat.layout.sharing import SharingMap

__all__ = ["Block", "Comparison", "Component", "Copies", "Inspected", "Inspection", "Pair", "Quantization", "inspect"]


@dataclass(frozen=True)
class Component:
    """What is stored of one part of the model.

    Attributes:
        tensors: keys, copies and parts of quant states among them.
        parameters: of the model: a shared tensor counts once, a quantized one with its unquantized size.
        bytes: as stored, of all keys.
    """

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Block:
    """One shared block.

    Attributes:
        index: its number.
        canonical_layer: the first layer that uses it.
        layers: all that use it.
        stored: layer -> tensors stored there, adapters left out.
        adapters: the positions whose adapters it owns.
        adapters_stored: those of them that are stored whole, in whichever slots.
        adapters_misplaced: those of them stored in other blocks' slots alone.
        parameters: with its adapters.
    """

    index: int
    canonical_layer: int
    layers: tuple[int, ...]
    stored: Mapping[int, int]
    adapters: tuple[int, ...]
    adapters_stored: tuple[int, ...]
    adapters_misplaced: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Quantization:
    """What is quantized.

    Attributes:
        weights: "nf4", "fp4", "int8" (bitsandbytes'), "torchao", "GPTQ" and so on -> weights, copies among them.
        double: whether absmax is quantized too.
        shared: how many of the weights belong to shared blocks.
        config: quantization_config as written, None where config.json has none.
    """

    weights: Mapping[str, int]
    double: bool
    shared: int
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class Inspected:
    """One checkpoint.

    Attributes:
        source: as given.
        layout: the one recognised; "divergent" is expanded or partial with copies that differ; "unknown" where
            config.json does not say which model this is.
        model_type: "zamba2" or "zamba", None where unknown.
        num_layers: of the model, None where unknown.
        tensors: keys stored.
        parameters: of the model, as `Component.parameters`.
        bytes: of all tensors as stored.
        shards: file -> its size in bytes.
        dtypes: word of safetensors ("BF16") -> keys.
        components: those asked for, and "other" for tensors that are no part of the model.
        positions: index, layer, block and canonical_layer of each use of a shared block.
        blocks: the shared blocks.
        quantization: None where nothing is quantized and the config does not say so.
        missing: tensors of the model of which no copy is stored, by their canonical names; None where the model is
            unknown.
        extra: stored names that are no part of the model; None where it is unknown.
        copies: shared tensors stored more than once.
        faults: why convert-checkpoint would refuse it; empty when it would not.
        warnings: what a person should hear.
        nonfinite: stored names that hold NaN or infinity; None where the tensors were not searched.
    """

    source: str
    layout: str
    model_type: str | None
    num_layers: int | None
    tensors: int
    parameters: int
    bytes: int
    shards: Mapping[str, int]
    dtypes: Mapping[str, int]
    components: Mapping[str, Component]
    positions: tuple[Mapping[str, int], ...]
    blocks: tuple[Block, ...]
    quantization: Quantization | None
    missing: tuple[str, ...] | None
    extra: tuple[str, ...] | None
    copies: tuple[Copies, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    nonfinite: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Inspection:
    """One checkpoint, or two and how far they lie apart.

    Attributes:
        a, b: the checkpoints; b is None when there was one.
        comparison: None when there was one.
    """

    a: Inspected
    b: Inspected | None = None
    comparison: Comparison | None = None

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.a.faults and (self.b is None or not self.b.faults)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no word for numbers that are not finite: they become "inf" and "nan"."""
        return {"ok": self.ok, **_plain(dataclasses.asdict(self))}


def inspect(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    *,
    components: Collection[str] = COMPONENTS,
    values: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Look into a checkpoint, or compare two. Prints nothing and writes nothing.

    Of one checkpoint, headers and the copies of shared tensors are read; of two, every tensor, one at a time.

    Args:
        a, b: a directory, an index, a single file, or a name on the hub. A broken checkpoint will do: what
            convert-checkpoint would refuse is listed in `Inspected.faults`.
        components: of `COMPONENTS`: what to count and compare. Copies of others are not compared, so that their
            differences are no fault.
        values: read every tensor, and look for NaN and infinity: a fault, as merging and quantizing refuse them.
        allow_pickle: read .bin and .pt files, with torch.load(weights_only=True).
        progress: makes what shows progress.

    Raises:
        CheckpointError: nothing that could be a checkpoint lies there, or files changed while they were read.
        ZambaCompatError: no such component.
    """
    if odd := sorted(set(components) - set(COMPONENTS)):
        what = f"There is no component {', '.join(map(repr, odd))}."
        raise ZambaCompatError(what, remedy=f"Use {', '.join(COMPONENTS)}.")
    wanted = frozenset(components)
    with ExitStack() as stack:
        sources = (a,) if b is None else (a, b)
        surveys = []
        for source in sources:
            opened = open_as_far(source, allow_pickle=allow_pickle)
            stack.enter_context(opened.checkpoint)
            surveys.append(survey(opened))
        copies = [compare_copies(one, wanted, progress) for one in surveys]
        nonfinite = [search(one, progress) if values else None for one in surveys]
        comparison = None if b is None else contrast(surveys, copies, wanted, progress)
        for one in surveys:
            one.checkpoint.verify_unchanged()
        each = zip(map(str, sources), surveys, copies, nonfinite, strict=True)
        found = [_inspected(*one, wanted) for one in each]
    return Inspection(found[0], None if b is None else found[1], comparison)


def _inspected(
    source: str,
    found: Survey,
    copies: tuple[Copies, ...],
    nonfinite: tuple[str, ...] | None,
    wanted: Collection[str],
) -> Inspected:
    stored, sharing = found.checkpoint.tensors, found.sharing
    components, parameters = _components(found)
    differ = any(one.counts and not one.equal for one in copies) and found.layout in ("expanded", "partial")
    return Inspected(
        source=source,
        layout="divergent" if differ else found.layout,
        model_type=None if sharing is None else sharing.model_type,
        num_layers=None if sharing is None else sharing.num_layers,
        tensors=len(stored),
        parameters=parameters,
        bytes=sum(info.nbytes for info in stored.values()),
        shards={shard.name: shard.size for shard in found.checkpoint.shards},
        dtypes=dict(Counter(info.dtype for info in stored.values()).most_common()),
        components={name: count for name, count in components.items() if name in wanted or name == OTHER},
        positions=() if sharing is None else tuple(dataclasses.asdict(position) for position in sharing.positions),
        blocks=() if sharing is None or found.plan is None else tuple(_blocks(found, sharing)),
        quantization=_quantization(found),
        missing=None if found.plan is None else found.missing,
        extra=None if found.plan is None else found.unknown,
        copies=copies,
        nonfinite=nonfinite,
        faults=tuple(found.faults.found),
        warnings=(*found.checkpoint.warnings, *found.notes),
    )


def _components(found: Survey) -> tuple[dict[str, Component], int]:
    """Component -> what is stored of it, and the parameters of the model."""
    keys, parameters, size = Counter[str](), Counter[str](), Counter[str]()
    counted: set[str] = set()
    for name, info in found.tensors.items():
        component = found.component(name)
        keys[component] += 1
        size[component] += info.nbytes
        home = found.canonical(base_of(name))
        if is_weight(name) and name != found.tied_head and home not in counted:
            counted.add(home)
            parameters[component] += found.parameters(name)
    order = [name for name in (*COMPONENTS, OTHER) if keys[name]]
    total = sum(parameters[name] for name in COMPONENTS)
    return {name: Component(keys[name], parameters[name], size[name]) for name in order}, total


def _blocks(found: Survey, sharing: SharingMap) -> list[Block]:
    assert found.plan is not None
    groups = found.plan.groups
    stored: dict[int, Counter[int]] = {}
    adapters: dict[int, list[str]] = {}
    parameters = Counter[int]()
    for key, names in groups.items():
        shared = sharing.parse(key)
        assert shared is not None  # of a canonical name: its layer is the block's own
        block = sharing.block_of(shared.layer)
        if is_weight(key):
            parameters[block] += found.parameters(next(iter(names.values())))
        if shared.adapter is None and is_weight(key):
            stored.setdefault(block, Counter()).update(names.keys())
        elif shared.adapter is not None:
            adapters.setdefault(shared.adapter, []).append(key)
    expected = Counter(
        shared.adapter for key in sharing.shared_keys(prefix=found.prefix) if (shared := sharing.parse(key))
    )
    blocks = []
    for block in range(sharing.num_blocks):
        owned = sharing.adapters_of(block)
        keys = {i: adapters.get(i, ()) for i in owned}
        whole = tuple(i for i in owned if sum(map(is_weight, keys[i])) == expected[i])
        aside = tuple(i for i in owned if any(all(map(sharing.is_misplaced, groups[key].values())) for key in keys[i]))
        layers, at = sharing.layers_of(block), dict(sorted(stored.get(block, Counter()).items()))
        blocks.append(Block(block, layers[0], layers, at, owned, whole, aside, parameters[block]))
    return blocks


def _quantization(found: Survey) -> Quantization | None:
    config = found.config.get("quantization_config")
    if not found.parts and not config:
        return None
    weights = Counter(format_of(tuple(parts)) for parts in found.parts.values())
    double = any("nested_absmax" in parts for parts in found.parts.values())
    shared = sum(found.sharing.parse(name) is not None for name in found.parts) if found.sharing is not None else 0
    return Quantization(dict(weights), double, shared, config if isinstance(config, Mapping) else None)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
