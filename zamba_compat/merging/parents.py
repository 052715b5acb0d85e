"""The checkpoints that are merged, each read under the names of the hub layout whatever it is stored in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.layouts import contents as layouts
from zamba_compat.checkpoint.progress import Progress
from zamba_compat.checkpoint.reading.opening import Checkpoint, TensorInfo, open_checkpoint
from zamba_compat.checkpoint.reading.stored import StoredBytes
from zamba_compat.checkpoint.recipe import Recipe
from zamba_compat.checkpoint.resolving.resolve import resolve
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.layout.sharing import SharingMap

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"(.*?\b(?:layers|h|blocks)\.)([0-9]{1,6})(\..+)")
_NUMBER_OF_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_BETWEEN = ":"  # between a parent's number and a stored name


@dataclass(frozen=True)
class Parent:
    """One checkpoint.

    Attributes:
        model: as the configuration names it.
        number: its place among the parents.
        checkpoint: what is stored.
        contents: what is known of a Zamba model; None for any other architecture, whose names are taken as they are.
        sharing: a Zamba model's, with the copies that differ resolved.
        config: config.json, of a Zamba model in the classic dialect, with what resolving copies changes.
        recipes: name in the hub layout -> how it is made of stored tensors.
        notes: what a person should hear.
    """

    model: str
    number: int
    checkpoint: Checkpoint
    contents: layouts.Contents | None
    sharing: SharingMap | None
    config: Mapping[str, Any]
    recipes: Mapping[str, Recipe]
    notes: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Dtype and shape of what `recipes` make."""
        return layouts.outcomes(self.recipes, self.checkpoint.tensors)

    @property
    def where(self) -> str:
        return str(self.checkpoint.path)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names that are no part of the model."""
        return () if self.contents is None else self.contents.unknown

    @cached_property
    def num_layers(self) -> int:
        """All layers. ConfigError where no key of the config says it."""
        if self.sharing is not None:
            return self.sharing.num_layers
        for key in _NUMBER_OF_LAYERS:
            value = self.config.get(key)
            if type(value) is int and value > 0:
                return value
        raise ConfigError(
            "config.json does not say how many layers there are.",
            where=self.where,
            remedy=f"One of {', '.join(_NUMBER_OF_LAYERS)} has to be there.",
        )

    @property
    def is_tied(self) -> bool:
        """Whether its config ties the head to the embedding."""
        tied = self.config.get("tie_word_embeddings") if self.sharing is None else self.sharing.tied_embeddings
        return bool(tied)

    @property
    def ties_head(self) -> bool:
        """Whether its embedding is all that there is of its head."""
        return self.is_tied and HEAD not in self.recipes and _EMBEDDING in self.recipes

    @property
    def has_own_head(self) -> bool:
        """Whether it has another head than its embedding; what is stored beside a tied one is a copy."""
        return HEAD in self.recipes and not self.is_tied

    @property
    def architecture(self) -> str:
        """Such as "zamba2", for comparing and for messages."""
        return str(self.config.get("model_type") or "unknown")

    def at_layer(self, name: str, layer: int) -> str:
        """What the tensor `name` of another parent's layer is called here at `layer`; see `recipes` for the result."""
        match = _LAYER.fullmatch(name)
        return name if match is None else f"{match[1]}{layer}{match[3]}"

    def canonical(self, name: str) -> str:
        """The name in `recipes` of a tensor that is called `name` at its own layer."""
        if name == HEAD and self.ties_head:
            return _EMBEDDING
        return name if self.sharing is None else self.sharing.canonical_key(name)

    def recipe(self, name: str) -> Recipe:
        """That of `recipes`, its sources named as `Parents` knows them."""
        found = self.recipes[name]
        sources = tuple(f"{self.number}{_BETWEEN}{source}" for source in found.sources)
        info = self.tensors[name]
        return Recipe(sources, found.make, info.shape, info.dtype)


def layer_of(name: str) -> int | None:
    """The layer that a tensor's name tells, in any of the usual architectures; None for one outside of the layers."""
    match = _LAYER.fullmatch(name)
    return None if match is None else int(match[2])


@dataclass
class Parents:
    """All parents, open; use it as a context manager. Stored tensors are called NUMBER:NAME."""

    parents: tuple[Parent, ...] = ()
    _opened: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Parents:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def open(self, models: Sequence[str], *, allow_pickle: bool) -> tuple[Checkpoint, ...]:
        """Open checkpoints from headers alone.

        Raises:
            CheckpointError, ConfigError: see `open_checkpoint`.
        """
        return tuple(self._opened.enter_context(open_checkpoint(model, allow_pickle=allow_pickle)) for model in models)

    def __iter__(self) -> Iterator[Parent]:
        return iter(self.parents)

    def __getitem__(self, model: str) -> Parent:
        return next(parent for parent in self.parents if parent.model == model)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Everything stored."""
        return {
            f"{parent.number}{_BETWEEN}{name}": info
            for parent in self.parents
            for name, info in parent.checkpoint.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """A stored tensor, mapped from its file."""
        checkpoint, own = self._find(name)
        return checkpoint.read(own)

    def stored_bytes(self, name: str) -> StoredBytes | None:
        """Where a stored tensor lies; None in pickled files."""
        checkpoint, own = self._find(name)
        return checkpoint.stored_bytes(own)

    def _find(self, name: str) -> tuple[Checkpoint, str]:
        number, _, own = name.partition(_BETWEEN)
        return self.parents[int(number)].checkpoint, own


def read_parent(
    model: str,
    number: int,
    checkpoint: Checkpoint,
    *,
    choice: str,
    allow_unknown: bool,
    progress: Progress | None = None,
) -> Parent:
    """A parent under the hub layout's names: a Zamba model's layout recognised, its copies compared and made one.

    Args:
        model: as the configuration names it.
        number: its place among the parents.
        checkpoint: open.
        choice: what becomes of copies that differ, see `checkpoint.resolving.resolve`.
        allow_unknown: take tensors that are no part of the model along.
        progress: makes what shows progress.

    Raises:
        ConfigError, CheckpointError: see `layouts.contents.read_contents` and `resolving.resolve.resolve`.
    """
    config = checkpoint.config
    zamba = str(config.get("model_type", "")).startswith("zamba") or layouts.zyphra_layout(checkpoint.tensors, config)
    if not zamba:
        if config.get("quantization_config"):
            raise _quantized(checkpoint)
        recipes = {name: Recipe((name,)) for name in checkpoint.tensors}
        return Parent(model, number, checkpoint, None, None, config, recipes, checkpoint.warnings)
    contents = layouts.read_contents(checkpoint, allow_unknown=allow_unknown)
    if contents.quantized:
        raise _quantized(checkpoint)
    resolution = resolve(contents, choice, progress=progress)
    config, notes = resolution.whole_config, (*checkpoint.warnings, *contents.notes, *resolution.notes)
    sharing = SharingMap.from_config(config)
    return Parent(model, number, checkpoint, contents, sharing, config, resolution.hub, notes)


def _quantized(checkpoint: Checkpoint) -> CheckpointError:
    return CheckpointError(
        "The checkpoint is quantized.",
        where=str(checkpoint.path),
        remedy="Merge the checkpoint that it was made from, and quantize the result with --quantize.",
    )
