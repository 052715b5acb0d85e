"""A checkpoint under transformers' names as far as it can be understood, and every reason to refuse it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.reading.lenient import Faults, Opened
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.config import normalise_config
from zamba_compat.layout.copies import same_bits
from zamba_compat.layout.plan import Plan, plan
from zamba_compat.layout.quant_state_names import BITSANDBYTES, base_of, format_of, holds_values, is_weight, part_of
from zamba_compat.layout.sharing import SharingMap

from .components import OTHER, component_of
from .contents import ZYPHRA, outcomes, read_contents, under_own_names, without_tied_head, zyphra_layout
from .dequantize import dequantize
from .shapes import Shape, expected_shapes, fill_in, is_head
from .validate import check_names, check_tensors
from .zyphra_native import deinterleave

if TYPE_CHECKING:
    from torch import Tensor

    from zamba_compat.checkpoint.reading.headers import TensorInfo
    from zamba_compat.checkpoint.reading.stored import Checkpoint

_BUFFERS = (".inv_freq", "_extra_state")


@dataclass(frozen=True)
class Survey:
    """What a checkpoint holds.

    Attributes:
        checkpoint: as opened; see `lenient.Opened`.
        faults: why it would be refused.
        unreadable: stored names whose bytes are not read.
        layout: the one recognised, "unknown" without a config that says which model it is.
        config: in the classic dialect; as written where it describes no model.
        sharing: the sharing map, None without such a config.
        prefix: "model." for a language model, "" for a base model.
        expected: tensors of the hub layout -> shape, None where the config lacks a size.
        tensors: name -> dtype and shape, under transformers' names where they are known.
        recipes: name -> how it is made of what is stored.
        plan: which copy fills which parameter; None without a sharing map.
        tied_head: the stored lm_head.weight of a model that ties it to the embedding.
        missing: tensors of the model of which no copy is stored.
        unknown: names that are no part of the model.
        notes: what a person should hear.
    """

    checkpoint: Checkpoint
    faults: Faults
    unreadable: frozenset[str]
    layout: str
    config: Mapping[str, Any]
    sharing: SharingMap | None
    prefix: str
    expected: Mapping[str, Shape | None]
    tensors: Mapping[str, TensorInfo]
    recipes: Mapping[str, Recipe]
    plan: Plan | None
    tied_head: str | None
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> dict[str, dict[str, str]]:
        """Quantized weight -> what a part is to it (`quant_state_names.part_of`) -> the part's name.

        A part whose own layer holds no weight belongs to the copies of the weight at other layers that lack it.
        """
        copies: dict[str, list[str]] = {}
        for name in filter(is_weight, self.tensors):
            copies.setdefault(self.canonical(base_of(name)), []).append(base_of(name))
        found: dict[str, dict[str, str]] = {}
        strays: list[tuple[str, str, str]] = []
        for name in self.tensors:
            part, weight = part_of(name), base_of(name)
            held = copies.get(self.canonical(weight), [])
            if part is not None and weight in held:
                found.setdefault(weight, {})[part] = name
            elif part is not None:
                strays += [(copy, part, name) for copy in held]
        for weight, part, name in strays:
            found.setdefault(weight, {}).setdefault(part, name)
        return found

    def component(self, name: str) -> str:
        """See `components.component_of`; "other" for what is no part of the model."""
        return OTHER if name in self.unknown else component_of(base_of(name))

    def canonical(self, name: str) -> str:
        return name if self.sharing is None else self.sharing.canonical_key(name)

    def shape(self, name: str) -> Shape:
        """Of a weight before it was quantized."""
        info = self.tensors[name]
        if holds_values(name):
            return self.expected.get(self.canonical(base_of(name))) or info.shape
        if name in self.parts and info.dtype != "I8":
            expected = self.expected.get(self.canonical(name))
            return expected or (2 * info.nbytes,)
        return info.shape

    def nbytes(self, name: str) -> int:
        """Of a weight and all that belongs to it, as stored."""
        return sum(self.tensors[part].nbytes for part in {name, *self._parts_of(name).values()})

    def kind(self, name: str) -> str | None:
        """The format of a weight (`quant_state_names.format_of`) where it is one whose values are not read here."""
        kind = format_of(self._parts_of(name)) if self._parts_of(name) else None
        return None if kind in (*BITSANDBYTES, "unknown") else kind

    def parameters(self, name: str) -> int:
        return math.prod(self.shape(name))

    def read_stored(self, name: str) -> Tensor:
        """As stored, mapped. CheckpointError when it cannot be read."""
        recipe = self.recipes[name]
        if not self.unreadable.isdisjoint(recipe.sources):
            raise CheckpointError("Its file is damaged.", where=name, remedy="Get the file again.")
        return recipe.made(self.checkpoint.read)

    def read(self, name: str) -> Tensor:
        """The values: as stored, mapped, or float32 of a quantized weight. CheckpointError when it cannot be read."""
        parts = {part: self.read_stored(stored) for part, stored in self._parts_of(name).items()}
        weight = self.read_stored(name)
        return dequantize(weight, parts, where=name) if parts else weight

    def same(self, a: str, b: str, other: Survey | None = None) -> bool:
        """Whether two weights, with all that belongs to them, are equal bit for bit; `b` is in `other`, or here too."""
        other = other or self
        parts_a, parts_b = self._parts_of(a), other._parts_of(b)
        if parts_a.keys() != parts_b.keys() or part_of(a) != part_of(b):
            return False
        for one, two in {(a, b), *((parts_a[part], parts_b[part]) for part in parts_a)}:
            x, y = self.read_stored(one), other.read_stored(two)
            if x.dtype != y.dtype or x.shape != y.shape or not same_bits(x, y):
                return False
        return True

    def _parts_of(self, name: str) -> dict[str, str]:
        return self.parts.get(base_of(name), {})


def survey(opened: Opened) -> Survey:
    """What an open checkpoint holds; whatever `layouts.read_contents` refuses is added to its faults."""
    checkpoint, faults = opened.checkpoint, opened.faults
    known = not opened.names_lost and (checkpoint.config or not faults.found)
    contents = faults.attempt(read_contents, checkpoint) if known else None
    if contents is None:
        return _as_far(opened)
    shapes = expected_shapes(contents.config, contents.sharing, prefix=contents.prefix)
    return Survey(
        checkpoint=checkpoint,
        faults=faults,
        unreadable=opened.unreadable,
        layout=contents.layout,
        config=contents.config,
        sharing=contents.sharing,
        prefix=contents.prefix,
        expected=shapes,
        tensors=contents.tensors,
        recipes=contents.recipes,
        plan=contents.plan,
        tied_head=contents.tied_head,
        missing=(),
        unknown=contents.unknown,
        notes=contents.notes,
    )


def _as_far(opened: Opened) -> Survey:
    """Each check of `read_contents` by itself."""
    checkpoint, faults = opened.checkpoint, opened.faults
    where = str(checkpoint.path)
    zyphra = zyphra_layout(checkpoint.tensors, checkpoint.config)
    tensors: Mapping[str, TensorInfo] = checkpoint.tensors
    recipes = {name: Recipe((name,)) for name in tensors}
    raw: Mapping[str, Any] = checkpoint.config
    module, converted = None, None
    if zyphra is not None:
        module = ZYPHRA[zyphra]
        if raw:
            converted = faults.attempt(module.to_hub, tensors, raw, where=where, allow_unknown=True)
        if converted is not None:
            raw, recipes = converted
            tensors = outcomes(recipes, tensors)
    file = checkpoint.path / "config.json"
    source = raw if converted is not None or not file.is_file() else file  # the latter is named in messages
    config = faults.attempt(normalise_config, source) if raw else None
    sharing = None if config is None else faults.attempt(SharingMap.from_config, config)
    if zyphra is None and sharing is not None:
        named = faults.attempt(under_own_names, checkpoint, sharing, where)
        tensors, recipes = (tensors, recipes) if named is None else named
    if module is not None and converted is None and config is not None and sharing is not None:
        recipes = _renamed(module, tensors, sharing, config.get("num_attention_heads"))
        tensors = outcomes(recipes, tensors)
    if config is None or sharing is None:
        return Survey(
            checkpoint=checkpoint,
            faults=faults,
            unreadable=opened.unreadable,
            layout=zyphra or "unknown",
            config=raw,
            sharing=None,
            prefix="model.",
            expected={},
            tensors=tensors,
            recipes=recipes,
            plan=None,
            tied_head=None,
            missing=(),
            unknown=(),
        )
    prefixes = [p for p in ("model.", "") if any(name.startswith(f"{p}layers.") for name in tensors)]
    prefix = prefixes[0] if prefixes else "model."
    # Where files are lost or the names are another model's, that tensors are missing follows.
    follows = opened.names_lost or not prefixes
    expected: dict[str, Shape | None] = dict.fromkeys(sharing.hub_keys(prefix=prefix))
    if zyphra is not None:
        config = {**config, "use_mem_rope": bool(config.get("use_mem_rope"))}  # as Zyphra's config classes assume
    filled = faults.attempt(fill_in, config, where)
    homes = {name: sharing.canonical_key(base_of(name)) for name in tensors}
    unknown = tuple(name for name, home in homes.items() if home not in expected and not is_head(home))
    if filled is not None:
        shapes = expected_shapes(filled[0], sharing, prefix=prefix)
        expected = dict(shapes)
        if zyphra is None:  # Zyphra's have been checked under their own names
            if not follows:
                faults.attempt(check_names, tensors, sharing, shapes, where=where, allow_unknown=False)
                faults.attempt(check_names, tensors, sharing, shapes, where=where, allow_unknown=True)
            faults.attempt(check_tensors, tensors, sharing, shapes, filled[0], unknown, where=where, assumed=filled[1])
    stored = set(homes.values())
    tied_head, known = without_tied_head(tensors, sharing, prefix, unknown)
    if zyphra is None and not follows:
        faults.attempt(plan, known, sharing, where=where)
    found = plan(known, sharing, where=where, complete=False)
    return Survey(
        checkpoint=checkpoint,
        faults=faults,
        unreadable=opened.unreadable,
        layout=zyphra or _layout(found, expected),
        config=config,
        sharing=sharing,
        prefix=prefix,
        expected=expected,
        tensors=tensors,
        recipes=recipes,
        plan=found,
        tied_head=tied_head,
        missing=tuple(key for key in expected if key not in stored),
        unknown=unknown,
    )


def _renamed(module: Any, stored: Mapping[str, TensorInfo], sharing: SharingMap, heads: object) -> dict[str, Recipe]:
    """The tensors of one of Zyphra's layouts that is incomplete, under transformers' names where they have one."""
    slots: dict[str, list[str]] = {}
    for key in sharing.hub_keys():
        slots.setdefault(module.stored_name(key, sharing), []).append(key)
    recipes: dict[str, Recipe] = {}
    for name, info in stored.items():
        keys = slots.get(name, [])
        if len(keys) == 1:
            recipes[keys[0]] = Recipe((name,))
        elif (
            keys and isinstance(heads, int) and heads > 0 and len(info.shape) == 2 and info.shape[0] % (3 * heads) == 0
        ):
            shape = (info.shape[0] // 3, info.shape[1])
            for part, key in enumerate(keys):  # q, k and v
                recipes[key] = Recipe((name,), partial(deinterleave, part=part, heads=heads), shape, info.dtype)
        elif "_lora_" not in name and not name.endswith(_BUFFERS):  # an adapter that no position uses
            recipes[name] = Recipe((name,))
    return recipes


def _layout(found: Plan, expected: Mapping[str, object]) -> str:
    """Of an incomplete checkpoint: as its stored tensors lie."""
    sharing = found.sharing
    if found.is_identity:
        return "untied" if 1 < sharing.num_blocks == len(sharing.hybrid_layers) else "hub"
    whole = all(
        len(copies) == len(sharing.aliases(key)) for key, copies in found.groups.items() if base_of(key) in expected
    )
    return "expanded" if whole else "partial"
