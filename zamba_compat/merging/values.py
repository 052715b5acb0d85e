"""What each tensor of the result gets: the parameters looked up as mergekit does, and the one rule for shared tensors.

The rule. A tensor of a shared block has one value, by default the mean of what the configuration says at the layers
that use the block (`shared: mean`; `first` and `middle` take the value at the first and at the middle one, the earlier
of two). An adapter has the value at its own position's layer, anything else the value at its own layer. At a layer
where nothing is said of the tensor, it has the base's. With `shared: separate` every position is a block of its own and
has the value at its own layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from zamba_compat.checkpoint.layouts.components import layers_of
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import ConfigError
from zamba_compat.layout.sharing import SharingMap

from .config import MergeConfig, Parameters
from .layers import Place, Stack
from .methods import METHODS, Share
from .near import near_filters
from .parents import Parents, layer_of
from .settings import Scalar, Setting


@dataclass(frozen=True)
class Use:
    """One use of a tensor: its name there, and the place."""

    name: str
    place: Place


@dataclass(frozen=True)
class Values:
    """Reads the parameters of a merge.

    Attributes:
        config: the merge.
        parents: its models.
        stack: which of their layers become which of the result.
        sharing: the result's sharing map, None if it shares nothing.
    """

    config: MergeConfig
    parents: Parents
    stack: Stack
    sharing: SharingMap | None

    def uses(self, name: str) -> tuple[Use, ...]:
        """Where a tensor of the result is used, in depth order; one use outside of the layers."""
        layer = layer_of(name)
        if layer is None:
            return (Use(name, self.stack.before if "embed" in name else self.stack.behind),)
        if self.sharing is None:
            return (Use(name, self.stack.layers[layer]),)
        sharing = self.sharing
        return tuple(Use(sharing.at_layer(name, at), self.stack.layers[at]) for at in layers_of(name, sharing))

    def share(self, name: str) -> Share | None:
        """What the tensor gets; None where nothing is said of it and it stays the base's.

        Raises:
            ConfigError: parameters that are missing or do not fit each other.
        """
        uses = self.uses(name)
        shares = [self._at(use) for use in uses]
        if all(share is None for share in shares):
            return None
        base, where = self.config.base_model, f"{self.config.where}: {name}"
        known = [share for one in shares if (share := one or METHODS[self.config.method].kept(base)) is not None]
        if len(known) < len(shares):
            raise ConfigError(
                "Something is said of it at some of the layers that share it, and nothing at the others.",
                where=where,
                remedy="Give the parameters the same filters at all of them, or use shared: separate.",
            )
        if len(known) == 1:
            return known[0]
        if self.config.shared == "first":
            return known[0]
        if self.config.shared == "middle":
            return known[(len(known) - 1) // 2]
        return _mean(known, where)

    def stored_as(self, name: str, model: str) -> str:
        """What the tensor is called in a parent's hub layout.

        Raises:
            ConfigError: the result has one tensor where the parent has several.
        """
        parent = self.parents[model]
        found = {parent.canonical(self._there(use, model)) for use in self.uses(name) if self._is_used(use, model)}
        if len(found) > 1:
            raise ConfigError(
                f"The base shares it between layers where {model} has different tensors: {listed(sorted(found))}.",
                where=name,
                remedy="Use shared: separate, so that every position is a block of its own.",
            )
        return found.pop() if found else parent.canonical(name)

    def check_filters(self, names: Collection[str]) -> None:
        """Refuse filters that match no tensor of the result or of a parent.

        Raises:
            ConfigError: with the filters that may have been meant.
        """
        known = {use.name for name in names for use in self.uses(name)}
        known |= {self._there(use, model) for name in names for use in self.uses(name) for model in use.place.layers}
        lost: dict[str, list[str]] = {}
        for setting in self._settings():
            for word in setting.filters():
                if not any(word in name for name in known):
                    lost[word] = near_filters(word, known)
        if not lost:
            return
        told = [f"{word} (meant: {' or '.join(close)}?)" if close else word for word, close in lost.items()]
        raise ConfigError(
            f"No tensor's name contains the filter {', '.join(told)}.",
            where=self.config.where,
            remedy="A filter is a part of a name, such as self_attn, feed_forward, mamba or layers.5.",
        )

    def _at(self, use: Use) -> Share | None:
        base = self.config.base_model
        own_base = use.place.part.base_model or (base if self.config.has_base else None)

        def look(parameter: str, model: str | None) -> Scalar | None:
            name = use.name if model is None else self._there(use, model)
            for level in self._levels(use.place, model):
                if parameter in level:
                    value = level[parameter].evaluate(name, use.place.depth)
                    if value is not None:
                        return value
            return None

        where = f"{self.config.where}: {use.name}"
        return METHODS[self.config.method].share(look, use.place.models, base, own_base, where)

    def _levels(self, place: Place, model: str | None) -> Iterator[Parameters]:
        """The parameters that count, the innermost first."""
        for source in place.part.sources:
            if source.model == model:
                yield source.parameters
        yield place.part.parameters
        yield self.config.module_parameters
        yield self.config.parameters

    def _settings(self) -> Iterator[Setting]:
        levels = [self.config.parameters, self.config.module_parameters]
        for part in self.config.slices:
            levels += [part.parameters, *(source.parameters for source in part.sources)]
        for level in levels:
            yield from level.values()

    def _there(self, use: Use, model: str) -> str:
        """The name at the parent's own layer."""
        layer = use.place.layers.get(model)
        return use.name if layer is None else self.parents[model].at_layer(use.name, layer)

    def _is_used(self, use: Use, model: str) -> bool:
        return not use.place.layers or model in use.place.layers


def _mean(shares: Sequence[Share], where: str) -> Share:
    """The mean of every number; of a layer that keeps the base, the weights alone count."""
    models = dict.fromkeys(model for share in shares for model in share.weights)
    weights = {model: sum(share.weights.get(model, 0.0) for share in shares) / len(shares) for model in models}
    values = {
        name: _one([share.values[name] for share in shares if name in share.values], name, where)
        for name in dict.fromkeys(name for share in shares for name in share.values)
    }
    each: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for share in shares for name in share.each):
        maps = [share.each[name] for share in shares if name in share.each]
        known = dict.fromkeys(model for found in maps for model in found)
        each[name] = {model: _one([found[model] for found in maps if model in found], name, where) for model in known}
    return Share(weights, values, each, tuple(dict.fromkeys(model for share in shares for model in share.models)))


def _one(values: Sequence[float], name: str, where: str) -> float:
    if all(value == values[0] for value in values):
        return values[0]
    if isinstance(values[0], bool):
        raise ConfigError(
            f"{name} differs between the layers that share this tensor.", where=where, remedy="Give it one value."
        )
    return sum(values) / len(values)
