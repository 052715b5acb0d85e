"""Which layer of which parent becomes which layer of the result, and where in its slice it lies."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from zamba_compat.errors import ConfigError

from .config import MergeConfig, Slice, Source
from .parents import Parents


@dataclass(frozen=True)
class Place:
    """One layer of the result, or what lies before or behind all of them.

    Attributes:
        part: the slice.
        depth: from 0 (the slice's first layer) to 1 (its last), as mergekit counts it: 1 for a slice of one layer, 0
            outside of the layers.
        layers: model -> its layer that is used here; empty outside of the layers.
    """

    part: Slice
    depth: float
    layers: Mapping[str, int]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(source.model for source in self.part.sources)


@dataclass(frozen=True)
class Stack:
    """All places: before the layers, each layer, and behind them."""

    before: Place
    layers: tuple[Place, ...]
    behind: Place


def stack(config: MergeConfig, parents: Parents) -> Stack:
    """Lay the slices on each other, and check that the result's layers are the base's.

    Raises:
        ConfigError: layer ranges that do not fit each other or the models, or that would repeat, drop or reorder layers
            of the base.
    """
    slices = tuple(_whole(part, config, parents) for part in config.slices)
    places: list[Place] = []
    for number, part in enumerate(slices, 1):
        where = f"{config.where}, slice {number}"
        ranges = {source.model: _range(source, parents, where) for source in part.sources}
        lengths = {end - start for start, end in ranges.values()}
        if len(lengths) > 1:
            told = ", ".join(f"{model} {list(found)}" for model, found in ranges.items())
            raise ConfigError(
                f"The sources have different numbers of layers: {told}.",
                where=where,
                remedy="Give every source of a slice as many layers.",
            )
        for offset in range(count := lengths.pop()):
            depth = offset / (count - 1) if count > 1 else 1.0
            places.append(Place(part, depth, {model: start + offset for model, (start, _) in ranges.items()}))
    _check(places, config, parents)
    return Stack(Place(slices[0], 0.0, {}), tuple(places), Place(slices[-1], 0.0, {}))


def _whole(part: Slice, config: MergeConfig, parents: Parents) -> Slice:
    """The sources of `models`, and the base where it is not among them, with the ranges that they have there."""
    if any(source.layer_range is not None for source in part.sources):
        return part
    sources = [Source(one.model, (0, parents[one.model].num_layers), one.parameters) for one in part.sources]
    if config.has_base and config.base_model not in {source.model for source in sources}:
        sources.append(Source(config.base_model, (0, parents[config.base_model].num_layers)))
    return Slice(tuple(sources), part.base_model, part.parameters)


def _range(source: Source, parents: Parents, where: str) -> tuple[int, int]:
    assert source.layer_range is not None
    most = parents[source.model].num_layers
    if source.layer_range[1] > most:
        raise ConfigError(
            f"layer_range {list(source.layer_range)} goes beyond the {most} layers of {source.model}.",
            where=where,
            remedy=f"End it at {most}.",
        )
    return source.layer_range


def _check(places: list[Place], config: MergeConfig, parents: Parents) -> None:
    base = parents[config.base_model]
    remedy = f"Let the slices together go through layers 0 to {base.num_layers - 1} of {base.model}, each once."
    if base.sharing is None:  # nothing is shared, so layers may be repeated, left out and moved
        remedy += (
            f" mergekit makes models of other depths: zamba-compat run -- mergekit-yaml {shlex.quote(config.where)} OUT"
        )
    if len(places) != base.num_layers:
        raise ConfigError(
            f"The slices have {len(places)} layers together, the base model has {base.num_layers}; "
            "its architecture is the result's.",
            where=config.where,
            remedy=remedy,
        )
    for number, place in enumerate(places):
        for model, layer in place.layers.items():
            zamba = base.sharing is not None and parents[model].sharing is not None
            if layer == number or (model != base.model and not zamba):
                continue
            why = "; layers that move would meet other shared blocks and adapters" if zamba else ""
            raise ConfigError(
                f"Layer {number} of the result would be layer {layer} of {model}{why}.",
                where=config.where,
                remedy=remedy,
            )
