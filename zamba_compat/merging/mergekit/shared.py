"""One value for a tensor that several layers share: the mean of the values its layers ask for.

mergekit plans layer by layer, and `architecture.keys_by_layer` puts a shared tensor under every layer that uses it. So
it is planned once for each, with that layer's parameters; `folded` makes one task of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from zamba_compat.errors import ConfigError
from zamba_compat.layout.sharing import SharingMap

_WHOLE = "Give every source the whole model, in one slice or in pieces: layer_range: [0, {layers}]."


def check_slices(slices: Sequence[Any], configs: dict[Any, Any]) -> None:
    """Refuse slices that change which layers share a block.

    Args:
        slices: mergekit's OutputSliceDefinition of the only module, in order.
        configs: ModelReference -> transformers config, for every source.

    Raises:
        ConfigError: parents that share their blocks in different ways, or layers left out, repeated or moved.
    """
    maps = {model: SharingMap.from_config(config) for model, config in configs.items()}
    first, sharing = next(iter(maps.items()))
    for model, other in maps.items():
        if other != sharing:
            raise ConfigError(
                f"Its hybrid layers, blocks or tied embeddings are not those of {first}.",
                where=str(model),
                remedy="Merge models of one shape.",
            )
    start = 0
    for part in slices:
        ranges = [tuple(source.layer_range) for source in part.sources]
        if any(found != ranges[0] or found[0] != start for found in ranges):
            raise ConfigError(
                f"Layers {', '.join(f'{low} to {high}' for low, high in ranges)} are to become layer {start} and "
                "following; a Zamba2 whose layers are left out, repeated or moved shares its blocks in another way.",
                where="slices",
                remedy=_WHOLE.format(layers=sharing.num_layers),
            )
        start = ranges[0][1]
    if start != sharing.num_layers:
        raise ConfigError(
            f"They end at layer {start} of {sharing.num_layers}.",
            where="slices",
            remedy=_WHOLE.format(layers=sharing.num_layers),
        )


def folded(tensors: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """mergekit's (WeightInfo, task) pairs with every name once, in the order of first use.

    Raises:
        ConfigError: layers that share a tensor ask for different models or for different words.
    """
    tasks: dict[str, list[Any]] = {}
    weights: dict[str, Any] = {}
    for weight, task in tensors:
        weights.setdefault(weight.name, weight)
        tasks.setdefault(weight.name, []).append(task)
    return [(weight, _one(name, tasks[name])) for name, weight in weights.items()]


def _one(name: str, tasks: list[Any]) -> Any:
    if all(task == tasks[0] for task in tasks):
        return tasks[0]
    merging = [task for task in tasks if len(task.model_order) > 1] or tasks
    first = merging[0]
    # Where a layer keeps one model's weight, SLERP has t = 0 for the base's and 1 for the other's.
    kept = [float(task.model_order[0] != task.base_model) for task in tasks if task not in merging]
    same = all((t.model_order, t.method_name) == (first.model_order, first.method_name) for t in merging)
    if not same or (kept and set(dict(first.parameters.items())) != {"t"}):
        raise ConfigError(
            "The layers that share it are to be merged of different models.",
            where=name,
            remedy="Give all of the slices the same sources.",
        )
    from mergekit.common import ImmutableMap

    def mean(maps: list[dict[str, Any]], more: Sequence[float] = ()) -> Any:
        return ImmutableMap({key: _mean(name, key, [m[key] for m in maps] + [*more]) for key in maps[0]})

    inputs = {
        model: mean([dict(task.input_parameters[model].items()) for task in merging])
        for model in first.input_parameters
    }
    shared = mean([dict(task.parameters.items()) for task in merging], kept)
    return first.model_copy(update={"parameters": shared, "input_parameters": ImmutableMap(inputs)})


def _mean(name: str, parameter: str, values: list[Any]) -> Any:
    if all(value == values[0] for value in values):
        return values[0]
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise ConfigError(
            f"The layers that share it ask for {parameter} = {', '.join(map(str, values))}, which have no mean.",
            where=name,
            remedy="Give all of them the same.",
        )
    return sum(values) / len(values)
