"""mergekit's configuration of a merge, and the keys that are ours.

Read: models or slices (also under modules: default), merge_method, base_model, parameters at every level, dtype,
out_dtype, tokenizer_source or tokenizer: source, chat_template. Ours, which mergekit ignores: `shared`, what a tensor
of a shared block gets of a curve, and `resolve`, what becomes of copies of one tensor that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .settings import Setting

SHARED = ("mean", "first", "middle", "separate")
Parameters = Mapping[str, Setting]


@dataclass(frozen=True)
class Source:
    """One parent's part of a slice: layers first to last - 1, all of them where layer_range is None."""

    model: str
    layer_range: tuple[int, int] | None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Some layers of the result, in order."""

    sources: tuple[Source, ...]
    base_model: str | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class MergeConfig:
    """A merge's configuration, checked by itself; the parents are not looked at.

    Attributes:
        where: the file, for messages.
        text: the YAML as it was given.
        method: one of `methods.METHODS`.
        base_model: whose architecture, config and untouched tensors the result has.
        has_base: whether the configuration names it; if not, it is the first model, and like the others to a method.
        slices: at least one; `models` is one slice of whole models.
        module_parameters: those under modules: default.
        parameters: the outermost ones.
        dtype: "bfloat16" and so on, of the result; None keeps the base's.
        tokenizer_source: "base", "union", "none" or a model; None says nothing.
        chat_template: "auto", a template's text, or None.
        shared: one of `SHARED`.
        resolve: one of `checkpoint.resolving.resolve.CHOICES`, for every parent.
        notes: what a person should hear.
    """

    where: str
    text: str
    method: str
    base_model: str
    slices: tuple[Slice, ...]
    module_parameters: Parameters = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    shared: str = "mean"
    resolve: str = "error"
    has_base: bool = True
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is named, the base first."""
        named = [self.base_model]
        for part in self.slices:
            named += [source.model for source in part.sources] + [part.base_model or self.base_model]
        return tuple(dict.fromkeys(named))
