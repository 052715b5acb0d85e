"""The layouts a checkpoint comes in: told apart, read under transformers' names, written.

| layout | what it holds | read | written |
|---|---|---|---|
| hub | each shared block once, at the first layer that uses it | yes | yes |
| expanded | each block at every layer that uses it; "divergent" where the copies differ | yes | yes |
| partial | a block, or some of its tensors, at a later layer only | yes | |
| untied | the hub layout with num_mem_blocks = number of positions | yes | yes |
| zyphra-fork | Zyphra/transformers_zamba2, see `zyphra_fork` | yes | yes |
| zyphra-native | Zyphra/Zamba2, see `zyphra_native` | yes | yes |
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.dtypes import SIZES
from zamba_compat.checkpoint.reading.headers import TensorInfo
from zamba_compat.checkpoint.recipe import Recipe, compose
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.config import normalise_config, to_release_config
from zamba_compat.layout.plan import Divergence, Plan, plan
from zamba_compat.layout.quant_state_names import base_of
from zamba_compat.layout.sharing import SharingMap

from . import zyphra_fork, zyphra_native
from .foreign_names import own_names
from .other_formats import refuse_uncarried
from .shapes import expected_shapes, fill_in
from .validate import check_names, check_tensors, quantized_names

if TYPE_CHECKING:
    from torch import Tensor

    from zamba_compat.checkpoint.reading.stored import Checkpoint

WRITTEN = ("hub", "expanded", "untied", "zyphra-fork", "zyphra-native")
# Each with recognise, to_hub and from_hub.
ZYPHRA = {"zyphra-fork": zyphra_fork, "zyphra-native": zyphra_native}


@dataclass(frozen=True)
class Contents:
    """A checkpoint under transformers' names, whichever layout it is stored in.

    Attributes:
        opened: the checkpoint itself.
        where: what to call it in messages.
        layout: the one it is stored in; "expanded" also stands for divergent, which only comparing tells.
        config: in the classic dialect, with the defaults that the tensors prove.
        sharing: its sharing map.
        prefix: "model." for a language model or classifier, "" for a base model.
        tensors: name -> dtype and shape, every stored copy among them.
        recipes: name -> how it is made of what is stored; the stored tensor itself but for Zyphra's layouts.
        plan: which copy fills which parameter.
        tied_head: the stored lm_head.weight of a model that ties it to the embedding, if there is one.
        quantized: whether linear weights are stored in a quantizer's format.
        unknown: names that are no part of the model, to be copied.
        unused_adapters: where asked for, adapters under layers whose block does not own them, stored beside the right
            ones: what Zyphra's layouts hold for positions that run another block.
        notes: what a person should hear about it.
    """

    opened: Checkpoint
    where: str
    layout: str
    config: dict[str, Any]
    sharing: SharingMap
    prefix: str
    tensors: Mapping[str, TensorInfo]
    recipes: Mapping[str, Recipe]
    plan: Plan
    tied_head: str | None
    quantized: bool
    unknown: tuple[str, ...]
    unused_adapters: tuple[str, ...]
    notes: tuple[str, ...]

    def read(self, name: str) -> Tensor:
        """One of `tensors`."""
        return self.recipes[name].made(self.opened.read)

    def nbytes(self, divergence: Divergence) -> int:
        """Of all copies that differ."""
        return sum(self.tensors[name].nbytes for name in divergence.copies)


def read_contents(checkpoint: Checkpoint, *, allow_unknown: bool = False, keep_unused: bool = False) -> Contents:
    """Recognise the layout and check everything that headers and config can tell; reads no tensor.

    Args:
        checkpoint: an open checkpoint.
        allow_unknown: take names that are no part of the model along instead of refusing them.
        keep_unused: see `Contents.unused_adapters`.

    Raises:
        ConfigError: a config that describes no Zamba model, contradicts itself, or lacks what no shape tells.
        MissingTensorError: a tensor of which no copy is stored.
        CheckpointError: unknown names, shapes or dtypes that do not fit, copies that do not fit each other.
    """
    where = str(checkpoint.path)
    zyphra = zyphra_layout(checkpoint.tensors, checkpoint.config)
    notes: list[str] = []
    if zyphra is not None:
        module = ZYPHRA[zyphra]
        written, recipes = module.to_hub(
            checkpoint.tensors, checkpoint.config, where=where, keep_unused=keep_unused, allow_unknown=allow_unknown
        )
        tensors: Mapping[str, TensorInfo] = outcomes(recipes, checkpoint.tensors)
        config = normalise_config(written)
    else:
        file = checkpoint.path / "config.json"
        config = normalise_config(file if file.is_file() else checkpoint.config)
        tensors, recipes = under_own_names(checkpoint, SharingMap.from_config(config), where)
    config.pop("auto_map", None)  # names of code that is not copied
    sharing = SharingMap.from_config(config)
    refuse_uncarried(recipes, checkpoint.metadata, sharing, where)
    config, assumed = fill_in(config, where)
    prefix = _prefix(tensors, where)
    expected = expected_shapes(config, sharing, prefix=prefix)
    unknown = check_names(tensors, sharing, expected, where=where, allow_unknown=allow_unknown)
    check_tensors(tensors, sharing, expected, config, unknown, where=where, assumed=assumed)
    if assumed:
        notes.append(f"missing in the config, filled in as the tensors' shapes show: {', '.join(assumed)}")
    tied_head, known = without_tied_head(tensors, sharing, prefix, unknown)
    layout = plan(known, sharing, where=where)
    return Contents(
        opened=checkpoint,
        where=where,
        layout=zyphra or _layout(layout, expected),
        config=config,
        sharing=sharing,
        prefix=prefix,
        tensors=tensors,
        recipes=recipes,
        plan=layout,
        tied_head=tied_head,
        quantized=bool(config.get("quantization_config")) or bool(quantized_names(tensors)),
        unknown=unknown,
        unused_adapters=tuple(name for name in layout.unused if keep_unused and sharing.is_misplaced(name)),
        notes=tuple(notes),
    )


def under_own_names(
    checkpoint: Checkpoint, sharing: SharingMap, where: str
) -> tuple[Mapping[str, TensorInfo], dict[str, Recipe]]:
    """What is stored, without the names of wrappers that it was saved from within; and how each tensor is read.

    Raises:
        MissingTensorError, CheckpointError: see `foreign_names.own_names`.
    """
    stored = checkpoint.tensors
    heads = ("lm_head.weight", "score.weight")
    names = own_names(stored, {*sharing.expanded_keys(), *heads}, sharing, "model.", read=checkpoint.read, where=where)
    if all(own == name for own, name in names.items()):
        return stored, {name: Recipe((name,)) for name in stored}
    recipes = {own: Recipe((name,)) for own, name in names.items()}
    return outcomes(recipes, stored), recipes


def arrange(
    layout: str, hub: Mapping[str, Recipe], config: Mapping[str, Any], contents: Contents
) -> tuple[dict[str, Any], dict[str, Recipe]]:
    """Config and tensors of a checkpoint in another layout.

    Args:
        layout: one of `WRITTEN`.
        hub: the tensors of the hub layout, made of what is stored.
        config: of the hub layout, in the classic dialect.
        contents: the checkpoint that they come from.

    Returns:
        the config to write, and name -> recipe in the order to write them.

    Raises:
        CheckpointError: a layout that this model has no form in.
    """
    sharing = SharingMap.from_config(config)
    if layout in ZYPHRA:
        return _to_zyphra(layout, hub, config, contents, sharing)
    target = sharing
    if layout == "untied":
        if sharing.model_type != "zamba2":
            raise CheckpointError(
                "Zamba (v1) has one shared block by definition: no config says that there are more.",
                where=contents.where,
                remedy="Use --layout hub or expanded.",
            )
        target = sharing.untied()
    elif layout not in WRITTEN:
        raise CheckpointError(f"{layout!r} is no layout to write.", remedy=f"Use one of {', '.join(WRITTEN)}.")
    keys = (
        target.expanded_keys(prefix=contents.prefix)
        if layout == "expanded"
        else target.hub_keys(prefix=contents.prefix)
    )
    parts: dict[str, list[str]] = {}
    for name in hub:
        parts.setdefault(base_of(name), []).append(name)
    out: dict[str, Recipe] = {}
    for key in keys:
        layer = sharing.layer_of(key)
        for name in parts.get(sharing.canonical_key(key), ()):
            out[name if layer is None else sharing.at_layer(name, layer)] = hub[name]
    for name, recipe in hub.items():
        if sharing.parse(name) is None or sharing.is_misplaced(name):
            out.setdefault(name, recipe)  # heads, unknown names, adapters that no position uses
    return to_release_config({**config, "num_mem_blocks": target.num_blocks}), out


def outcomes(recipes: Mapping[str, Recipe], stored: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Dtype and shape of what recipes make: by name, stored nowhere."""
    found = {}
    for name, recipe in recipes.items():
        shape = recipe.shape if recipe.shape is not None else stored[recipe.sources[0]].shape
        dtype = recipe.dtype if recipe.dtype is not None else stored[recipe.sources[0]].dtype
        nbytes = math.prod(shape) * SIZES[dtype]
        found[name] = TensorInfo(name=name, dtype=dtype, shape=shape, shard="", offset=-1, nbytes=nbytes)
    return found


def without_tied_head(
    names: Collection[str], sharing: SharingMap, prefix: str, unknown: Collection[str]
) -> tuple[str | None, list[str]]:
    """The stored lm_head.weight of a model that ties it to the embedding, if there is one, and the names that count."""
    head = f"{prefix.removesuffix('model.')}lm_head.weight"
    tied_head = head if sharing.tied_embeddings and head in names else None
    return tied_head, [name for name in names if name not in unknown and name != tied_head]


def zyphra_layout(names: Collection[str], config: Mapping[str, Any]) -> str | None:
    """Which of Zyphra's own layouts these names are in, None for transformers'."""
    if any(name.startswith(("model.layers.", "layers.")) for name in names):
        return None
    return next((layout for layout, module in ZYPHRA.items() if module.recognise(names, config)), None)


def _to_zyphra(
    layout: str,
    hub: Mapping[str, Recipe],
    config: Mapping[str, Any],
    contents: Contents,
    sharing: SharingMap,
) -> tuple[dict[str, Any], dict[str, Recipe]]:
    if sharing.model_type != "zamba2" or quantized_names(hub):
        raise CheckpointError(
            f"{layout} holds unquantized Zamba2 language models and nothing else.",
            where=contents.where,
            remedy="Use --layout hub.",
        )
    written, recipes = ZYPHRA[layout].from_hub(
        outcomes(hub, contents.opened.tensors), dict(config), where=contents.where, allow_unknown=bool(contents.unknown)
    )
    return written, {name: compose(recipe, hub) for name, recipe in recipes.items()}


def _prefix(names: Collection[str], where: str) -> str:
    for prefix in ("model.", ""):
        if any(name.startswith(f"{prefix}layers.") for name in names):
            return prefix
    raise CheckpointError(
        f"No tensor is named model.layers.N or layers.N; there are {', '.join(list(names)[:3])}.",
        where=where,
        remedy="Give a Zamba2 checkpoint in one of the layouts of transformers or Zyphra.",
    )


def _layout(found: Plan, expected: Mapping[str, Any]) -> str:
    sharing = found.sharing
    if found.is_identity:
        return "untied" if 1 < sharing.num_blocks == len(sharing.hybrid_layers) else "hub"
    stored = {base_of(name) for copies in found.groups.values() for name in copies.values()}
    wanted = (alias for key in expected for alias in sharing.aliases(key) if sharing.parse(key) is not None)
    return "expanded" if all(alias in stored for alias in wanted) else "partial"
