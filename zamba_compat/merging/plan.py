"""Everything about a merge that is decided before a tensor is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zamba_compat.checkpoint.dtypes import DTYPES
from zamba_compat.checkpoint.layouts.components import kind_of, layers_of
from zamba_compat.checkpoint.reading.headers import TensorInfo
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.writing.writer import Output
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.layout.config import to_release_config
from zamba_compat.layout.sharing import SharingMap

from .config import MergeConfig
from .layers import stack
from .methods import METHODS, About
from .parents import HEAD, Parent, Parents
from .sums import Blend, Sum, Weighted
from .values import Values
from .workers import Workers

_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Decision:
    """What becomes of one tensor.

    Attributes:
        name: in the result.
        layers: that use it; () outside of the layers.
        values: model -> t (slerp) or weight, of methods that have such; None where nothing is said of the tensor and it
            stays the base's.
        parents: the models whose tensors are used.
        settings: the method's other parameters for the tensor.
    """

    name: str
    layers: tuple[int, ...]
    values: Mapping[str, float] | None
    parents: tuple[str, ...]
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MergePlan:
    """Everything decided, nothing computed.

    Attributes:
        sharing: the result's; None for architectures that share nothing.
        config: config.json of the result.
        outputs: its tensors, in the order to write them, before they are quantized.
        decisions: one per output.
        blends: the outputs that are computed.
        notes: what a person should hear.
    """

    sharing: SharingMap | None
    config: dict[str, Any]
    outputs: tuple[Output, ...]
    decisions: tuple[Decision, ...]
    blends: Mapping[str, Blend]
    notes: tuple[str, ...]


def make_plan(config: MergeConfig, parents: Parents, workers: Workers, dtype: str | None, seed: int = 0) -> MergePlan:
    """Decide what every tensor of the result is made of.

    Args:
        config: the merge.
        parents: open and read.
        workers: who will compute.
        dtype: "bfloat16" and so on, of the result; None keeps the base's.
        seed: of methods that draw at random.

    Raises:
        ConfigError: a configuration that does not fit the parents.
        CheckpointError: parents that do not fit each other.
    """
    base = parents[config.base_model]
    sharing = base.sharing
    if config.shared == "separate":
        if sharing is None or sharing.model_type != "zamba2":
            raise ConfigError(
                "shared: separate is for Zamba2, which can hold a block per position.",
                where=config.where,
                remedy="Leave it out.",
            )
        sharing = sharing.untied()
    names = _names(base, sharing)
    heads = {parent.model for parent in parents if parent.has_own_head} if base.ties_head else set()
    names += [HEAD] if heads else []
    notes = _compare_architectures(base, parents)
    values = Values(config, parents, stack(config, parents), sharing)
    values.check_filters(names)
    numbers = {parent.model: parent.number for parent in parents}
    word = None if dtype is None else DTYPES[dtype]
    outputs, decisions, blends = [], [], {}
    for name in names:
        own = base.canonical(name)
        info = base.tensors[own]
        share = None if own in base.unknown else values.share(name)
        used: tuple[str, ...] = (base.model,)
        total: Sum | None = None
        if share is not None:
            about = About(name, base.model, numbers, seed, f"{config.where}: {name}")
            used, total = METHODS[config.method].sum(share, about)
        if (used, total) != ((base.model,), None) and info.dtype not in _FLOATS:
            notes.append(f"{name} holds no floating-point numbers and stays the base's.")
            used, total, share = (base.model,), None, None
        if name == HEAD and heads and not heads & set(used):
            heads = set()
            continue
        sources = {model: values.stored_as(name, model) for model in used}
        _check_tensors(name, info, sources, parents, config)
        recipe, blend = _recipe(info, sources, total, parents, workers, word if own not in base.unknown else None)
        if blend is not None:
            blends[name] = blend
        outputs.append(Output(name, recipe.dtype or info.dtype, info.shape, recipe))
        layers = layers_of(name, sharing)
        weights, settings = (None, {}) if share is None else (dict(share.weights), dict(share.values))
        decisions.append(Decision(name, layers, weights, used, settings))
    written = _config(base, sharing, {output.dtype for output in outputs})
    if heads:
        written["tie_word_embeddings"] = False
        sharing = None if sharing is None else replace(sharing, tied_embeddings=False)
        notes.append(
            f"{listed(sorted(heads))} has a head of its own, and so has the result (tie_word_embeddings: false)."
        )
    return MergePlan(sharing, written, tuple(outputs), tuple(decisions), blends, tuple(notes))


def _names(base: Parent, sharing: SharingMap | None) -> list[str]:
    """The result's tensors: the base's, in the order of the hub layout."""
    if sharing is None or base.contents is None:
        return list(base.recipes)
    keys = list(sharing.hub_keys(prefix=base.contents.prefix))
    more = [name for name in base.recipes if sharing.parse(name) is None and name not in keys]  # heads, unknown names
    return [*(key for key in keys if base.canonical(key) in base.recipes), *more]


# What two models of one architecture have to agree on, though their tensors may have the same shapes; and what they
# compute otherwise, though their weights can be added.
_HEADS = ("num_attention_heads", "num_key_value_heads")
_NUMERICS = ("use_mem_rope", "use_long_context", "rope_theta", "rms_norm_eps", "time_step_limit", "hidden_act")


def compare_configs(base: Parent, parent: Parent) -> list[str]:
    """Refuse other heads: the same rows of a weight would belong to different ones. Say what else is otherwise."""

    def different(keys: tuple[str, ...]) -> str:
        one, other = base.config, parent.config
        return ", ".join(
            f"{key} {other[key]} instead of {one[key]}"
            for key in keys
            if key in one and key in other and one[key] != other[key]
        )

    if heads := different(_HEADS):
        raise CheckpointError(
            f"It has {heads}: the same rows of a weight belong to different heads.",
            where=parent.where,
            remedy="Merge models of one shape.",
        )
    if numerics := different(_NUMERICS):
        return [f"{parent.model} was trained with {numerics}; the result computes as {base.model}."]
    return []


def _compare_architectures(base: Parent, parents: Parents) -> list[str]:
    """Refuse what only one of two models of one architecture has; say what is left out of another one."""
    notes = []
    for parent in parents:
        if parent is base:
            continue
        if parent.architecture == base.architecture:
            notes += compare_configs(base, parent)
        one, other = base.sharing, parent.sharing
        if one is not None and other is not None and one.hybrid_layers != other.hybrid_layers:
            raise CheckpointError(
                f"Its hybrid layers are {list(other.hybrid_layers)}, those of {base.model} {list(one.hybrid_layers)}.",
                where=parent.where,
                remedy="Merge models of one shape.",
            )
        if one is not None and other is not None:
            extra = [n for n in parent.recipes if n not in parent.unknown and base.canonical(n) not in base.recipes]
        else:
            tied = {kind_of(HEAD)} if parent.is_tied or base.ties_head else set()
            known = {kind_of(name) for name in base.recipes} | tied
            extra = [name for name in parent.recipes if kind_of(name) not in known]
        if not extra:
            continue
        if parent.architecture == base.architecture:
            raise CheckpointError(
                f"{len(extra)} tensors are in this parent only: {listed(extra)}.",
                where=parent.where,
                remedy=f"Take them out of it, or merge models that have the same tensors as {base.model}.",
            )
        notes.append(
            f"{len(extra)} tensors of {parent.model} ({parent.architecture}) have no place in {base.architecture} and "
            f"are left out, {listed(extra, 1)} among them."
        )
    return notes


def _check_tensors(
    name: str, info: TensorInfo, sources: Mapping[str, str], parents: Parents, config: MergeConfig
) -> None:
    leave = f"Leave it out with a filter that does not match {name}; it then stays that of {config.base_model}."
    for model, own in sources.items():
        found = parents[model].tensors.get(own)
        if found is None:
            raise CheckpointError(
                f"{model} has no tensor {own}, so there is nothing to merge it with.",
                where=f"{parents[model].where}: {name}",
                remedy=leave,
            )
        if found.shape != info.shape:
            raise CheckpointError(
                f"{own} is {list(found.shape)} in {model} and {list(info.shape)} in the result.",
                where=f"{parents[model].where}: {name}",
                remedy=leave,
            )
        if found.dtype not in _FLOATS and info.dtype in _FLOATS:
            raise CheckpointError(
                f"{own} is {found.dtype} in {model}, no floating-point tensor.",
                where=f"{parents[model].where}: {name}",
                remedy=leave,
            )


def _recipe(
    info: TensorInfo,
    sources: Mapping[str, str],
    total: Sum | None,
    parents: Parents,
    workers: Workers,
    word: str | None,
) -> tuple[Recipe, Blend | None]:
    parts = [parents[model].recipe(own) for model, own in sources.items()]
    dtype = word if word is not None and info.dtype in _FLOATS else info.dtype
    if total is None:
        if parts[0].dtype == dtype:
            return parts[0], None
        total = Weighted((1.0,))  # another dtype
    blend = Blend(total, tuple((len(part.sources), part.make) for part in parts), info.shape, dtype, workers)
    stored = tuple(source for part in parts for source in part.sources)
    return Recipe(stored, blend, info.shape, dtype, pieces=blend.pieces), blend


def _config(base: Parent, sharing: SharingMap | None, words: set[str]) -> dict[str, Any]:
    config = {key: value for key, value in base.config.items() if key != "auto_map"}  # names code that is not copied
    if sharing is not None:
        config = to_release_config(
            config if sharing.model_type == "zamba" else {**config, "num_mem_blocks": sharing.num_blocks}
        )
    floats: Sequence[str] = [name for name, word in DTYPES.items() if word in words]
    if len(floats) == 1:
        config["dtype" if "dtype" in config else "torch_dtype"] = floats[0]
    return config
