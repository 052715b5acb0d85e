"""What Zyphra's two layouts have in common: which adapters they hold, what their code cannot run, how they convert.

Both keep the shared blocks apart from the layers, and give every block the adapters of all positions, though a position
uses those of its own block alone. The hub layout has no place for the unused ones: they are left out, and come back
as zeros, because Zyphra's own loading is strict and asks for them.

Source: Zyphra/transformers_zamba2 (src/transformers/models/zamba2) and Zyphra/Zamba2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.layout.config import dialect_of, to_release_config
from zamba_compat.layout.sharing import SharingMap

from .shapes import Shape, expected_shapes, fill_in

if TYPE_CHECKING:
    from torch import Tensor

    from zamba_compat.checkpoint.reading.opening import TensorInfo

Config = dict[str, Any]
Converted = tuple[Config, dict[str, Recipe]]

_BLOCK = re.compile(r"\.blocks\.([0-9]{1,4})\.")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_NAMED = 8  # tensors that one error names


@dataclass(frozen=True)
class Layout:
    """One of Zyphra's layouts.

    Attributes:
        name: what the user calls it.
        stored_name: hub key -> the stored tensor that holds it; q, k and v may have one together.
        config_words: a complete classic config -> the config of this layout.
        check_config: raises ConfigError for a classic config its code cannot run, beyond what neither layout's can.
        ignored: names of buffers that its own loading drops.
        older_name: an older spelling of a stored name.
        join, split: q, k, v -> the tensor they have together, and back (part=0, 1 or 2); both take heads=.
        holds_tied_head: whether a copy of a tied lm_head.weight has a place.
    """

    name: str
    stored_name: Callable[[str, SharingMap], str]
    config_words: Callable[[Config], Config]
    check_config: Callable[[Config, str], None]
    ignored: re.Pattern[str]
    older_name: Callable[[str], str]
    join: Callable[..., Tensor] | None = None
    split: Callable[..., Tensor] | None = None
    holds_tied_head: bool = False

    def to_hub(
        self,
        tensors: Mapping[str, TensorInfo],
        config: Mapping[str, Any],
        where: str,
        keep_unused: bool,
        allow_unknown: bool,
    ) -> Converted:
        """See `zyphra_fork.to_hub`."""
        hub, sharing = self._settle(config, tensors, where)
        shapes, spare = _shapes(hub, sharing)
        if not self.holds_tied_head:
            spare.pop(_HEAD, None)
        slots = self._slots([*shapes, *spare], sharing)
        older = {name: self.older_name(name) for name in slots}
        found = {name: old if old in tensors else name for name, old in older.items()}
        wanted = {found[name]: _joined([(shapes | spare)[key] for key in keys]) for name, keys in slots.items()}
        extra = _compare(tensors, wanted, {found[self.stored_name(key, sharing)] for key in spare}, where)

        recipes: dict[str, Recipe] = {}
        for key in [*shapes, *(key for key in spare if keep_unused or key == _HEAD)]:
            stored = self.stored_name(key, sharing)
            name, keys = found[stored], slots[stored]
            if name not in tensors:
                continue
            recipes[key] = Recipe((name,))
            if self.split is not None and len(keys) > 1:
                make = partial(self.split, part=keys.index(key), heads=hub["num_attention_heads"])
                recipes[key] = Recipe((name,), make, shapes[key], tensors[name].dtype)
        hub.setdefault("architectures", ["Zamba2ForCausalLM"])
        dtype = _DTYPES.get(tensors[found[self.stored_name(_EMBEDDING, sharing)]].dtype)
        if hub.get("torch_dtype") is None and dtype is not None:
            hub["torch_dtype"] = dtype
        return hub, recipes | self._unknown(extra, recipes, allow_unknown, where)

    def from_hub(
        self, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str, allow_unknown: bool
    ) -> Converted:
        """See `zyphra_fork.from_hub`."""
        hub, sharing = self._settle(config, tensors, where)
        shapes, spare = _shapes(hub, sharing)
        extra = _compare(tensors, shapes | spare, spare, where)
        if not (self.holds_tied_head and _HEAD in tensors):
            spare.pop(_HEAD, None)

        recipes: dict[str, Recipe] = {}
        for name, keys in self._slots([*shapes, *spare], sharing).items():
            if self.join is not None and len(keys) > 1:
                dtypes = sorted({tensors[key].dtype for key in keys})
                if len(dtypes) > 1:
                    what = f"{', '.join(keys)} have the dtypes {', '.join(dtypes)} and go into one tensor."
                    raise CheckpointError(what, where=where, remedy="Convert with --dtype first.")
                make = partial(self.join, heads=hub["num_attention_heads"])
                recipes[name] = Recipe(keys, make, _joined([shapes[key] for key in keys]), dtypes[0])
            elif keys[0] in tensors:
                recipes[name] = Recipe(keys)
            else:
                used = sharing.canonical_key(keys[0])
                recipes[name] = Recipe((used,), _zeros, spare[keys[0]], tensors[used].dtype)
        return self.config_words(hub), recipes | self._unknown(extra, recipes, allow_unknown, where)

    def _settle(self, config: Mapping[str, Any], names: Iterable[str], where: str) -> tuple[Config, SharingMap]:
        """The complete classic config of a model that Zyphra's code can run, and its sharing map."""
        raw = dict(config)
        blocks = [int(match[1]) for match in map(_BLOCK.search, names) if match]
        if raw.get("num_mem_blocks") is None and blocks:
            raw["num_mem_blocks"] = max(blocks) + 1
        hub = to_release_config(raw)
        if hub["model_type"] != "zamba2":
            refuse_config(f"model_type is {hub['model_type']!r}.", where, self.name)
        if dialect_of(raw).startswith("zyphra") and hub.get("use_mem_rope") is None:
            hub["use_mem_rope"] = False  # what both of Zyphra's config classes assume
        hub, _ = fill_in(hub, where)
        _check_config(hub, where)
        self.check_config(hub, where)
        return hub, SharingMap.from_config(hub)

    def _slots(self, keys: Iterable[str], sharing: SharingMap) -> dict[str, tuple[str, ...]]:
        """Stored name -> the hub keys it holds."""
        slots: dict[str, tuple[str, ...]] = {}
        for key in keys:
            name = self.stored_name(key, sharing)
            slots[name] = (*slots.get(name, ()), key)
        return slots

    def _unknown(self, extra: Collection[str], made: Collection[str], allow: bool, where: str) -> dict[str, Recipe]:
        kept = [name for name in extra if not self.ignored.search(name)]
        refused = [name for name in kept if not allow or name in made]
        if refused:
            what = f"These tensors have no place in a {self.name} checkpoint: {_named(refused)}."
            raise CheckpointError(what, where=where, remedy="--allow-unknown copies them unchanged.")
        return {name: Recipe((name,)) for name in kept}


def refuse_config(what: str, where: str, layout: str) -> None:
    """Raise the ConfigError of a model that a layout's own code computes otherwise or not at all."""
    raise ConfigError(what, where=where, remedy=f"This model has no {layout} form; keep the hub layout.")


def zyphra_words(config: Config) -> Config:
    """A complete classic config in the words both of Zyphra's repositories read."""
    out = {_WORDS.get(key, key): value for key, value in config.items() if key not in _DERIVED}
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return out | {
        "layers_block_type": ["g" if kind == "hybrid" else "m" for kind in config["layers_block_type"]],
        "mamba_headdim": config["mamba_expand"] * hidden // config["n_mamba_heads"],
        "kv_channels": hidden // heads,
        "num_query_groups": heads,
        "use_shared_block_lora": True,
        "gated_linear_unit": True,
        "add_bias_linear": bool(config.get("add_bias_linear")),
    }


_WORDS = {
    "mamba_d_state": "state_size",
    "mamba_d_conv": "conv_dimension",
    "mamba_expand": "expansion_factor",
    "intermediate_size": "ffn_hidden_size",
    "adapter_rank": "lora_rank",
    "use_shared_attention_adapter": "use_shared_attention_lora",
}
_DERIVED = ("hybrid_layer_ids", "n_mamba_heads")


def _check_config(config: Config, where: str) -> None:
    """What neither repository's code can run: its activation, widths and time step limit are fixed."""
    hidden, inter, limit = config["hidden_size"], config["intermediate_size"], config.get("time_step_limit")
    if inter != 4 * hidden:
        refuse_config(f"intermediate_size is {inter}, not 4 x hidden_size ({hidden}).", where, "Zyphra")
    if config.get("hidden_act") not in (None, "gelu"):
        refuse_config(f"hidden_act is {config['hidden_act']!r}, not 'gelu'.", where, "Zyphra")
    if limit is not None and list(limit) != [0, float("inf")]:
        refuse_config(f"time_step_limit is {limit!r}.", where, "Zyphra")
    if config["use_mem_rope"] and config.get("rope_scaling") is not None:
        refuse_config(f"rope_scaling is {config['rope_scaling']!r}.", where, "Zyphra")
    if config.get("ft_lora"):
        refuse_config("ft_lora is true: the Mamba layers have adapters too.", where, "hub")


def _shapes(config: Config, sharing: SharingMap) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of the hub keys, and those of what may be stored beside them.

    Beside them: every adapter under the blocks that do not own it, and a tied head.
    """
    shapes = expected_shapes(config, sharing)
    spare: dict[str, Shape] = {}
    everywhere = replace(sharing, num_blocks=1).shared_suffixes(0)  # with the adapters of all positions
    for layer in sharing.hybrid_layers[: sharing.num_blocks]:
        for suffix in everywhere:
            key = f"model.layers.{layer}.{sharing.stem}.{suffix}"
            if sharing.is_misplaced(key):
                spare[key] = shapes[sharing.canonical_key(key)]
    if sharing.tied_embeddings:
        spare[_HEAD] = shapes[_EMBEDDING]
    return shapes, spare


def _joined(shapes: list[Shape]) -> Shape:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _compare(
    tensors: Mapping[str, TensorInfo], wanted: Mapping[str, Shape], optional: Collection[str], where: str
) -> list[str]:
    """Check names and shapes; returns the names that are not wanted, in stored order."""
    missing = [name for name in wanted if name not in tensors and name not in optional]
    if missing:
        remedy = "The checkpoint is incomplete, or its config describes another model."
        raise CheckpointError(f"These tensors are missing: {_named(missing)}.", where=where, remedy=remedy)
    for name, shape in wanted.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            what = f"{name} has the shape {tuple(tensors[name].shape)}, the config asks for {shape}."
            raise CheckpointError(what, where=where, remedy="Keep the config the checkpoint was trained with.")
    return [name for name in tensors if name not in wanted]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _zeros(used: Tensor) -> Tensor:
    """An adapter no position uses, from the one of the same position that is used."""
    import torch

    return torch.zeros(used.shape, dtype=used.dtype)
