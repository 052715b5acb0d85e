"""What a merge is asked for beside its configuration, and what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zamba_compat.checkpoint.layouts.components import component_of, kind_of
from zamba_compat.checkpoint.writing.report import Options

from .plan import Decision


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Attributes:
        dry_run: check and decide, and write nothing.
        max_shard_size: bytes of tensors per file, such as "5GB" (of 10**9 bytes).
        dtype: "float32", "bfloat16" or "float16" for every floating-point tensor; None takes out_dtype or dtype of the
            configuration, and without these the base's.
        overwrite: replace a destination that is not empty.
        allow_pickle: read .bin and .pt files, with torch.load(weights_only=True).
        allow_unknown: copy the base's tensors that are no part of the model.
        resolve: what becomes of a parent's copies that differ, see `resolving.resolve`; None takes `resolve` of the
            configuration.
        quantize: "nf4", "fp4" or "int8" for the linear weights of the layers, by bitsandbytes.
        double_quant: quantize the absmaxes too; 4 bits only.
        compute_dtype: that config.json names for products with 4-bit weights; None is the model's dtype.
        keep_shared_16bit: leave the shared blocks unquantized.
        random_seed: of the methods that draw at random (dare, della); what is drawn depends on it, on the tensor's name
            and on the model's place, and on nothing else.
    """

    dry_run: bool = False
    max_shard_size: str = "5GB"
    dtype: str | None = None
    overwrite: bool = False
    allow_pickle: bool = False
    allow_unknown: bool = False
    resolve: str | None = None
    quantize: str | None = None
    double_quant: bool = False
    compute_dtype: str | None = None
    keep_shared_16bit: bool = False
    random_seed: int = 0

    def __post_init__(self) -> None:
        self.as_conversion()

    def as_conversion(self) -> Options:
        """The same of a conversion to the hub layout, which checks them too (CheckpointError)."""
        own = {key: value for key, value in dataclasses.asdict(self).items() if key != "random_seed"}
        return Options(**{**own, "resolve": own["resolve"] or "error"})


@dataclass(frozen=True)
class Group:
    """Tensors of one kind that get the same.

    Attributes:
        kind: their name without the layer and without an adapter's number.
        component: the part of the model that they belong to, see `checkpoint.layouts.components`.
        layers: that use them; () outside of the layers.
        shared: whether each of them is one tensor of several layers.
        values: model -> t (slerp) or weight, of methods that have such; None where nothing is said of them and they
            stay the base's.
        settings: the method's other parameters.
        parents: the models whose tensors are used.
        tensors: how many there are.
    """

    kind: str
    component: str
    layers: tuple[int, ...]
    shared: bool
    values: Mapping[str, float] | None
    settings: Mapping[str, float]
    parents: tuple[str, ...]
    tensors: int


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or would do.

    Attributes:
        destination: as given.
        method, base_model, models: of the configuration, the base first among the models.
        shared: the rule for shared tensors.
        options: what was asked for.
        written: False after a dry run.
        layouts: model -> the layout it is stored in; "" for an architecture that is not Zamba's.
        tensors, bytes: in the output.
        merged, copied: how many tensors are computed, and how many are one parent's bit for bit.
        kept: tensors of which the configuration says nothing, and that stay the base's.
        groups: what each kind of tensor gets, by layers.
        fallbacks: "near-parallel" or "zero" -> tensor -> how many vectors were added linearly or have no length; empty
            after a dry run.
        tokenizer_of: the model whose tokenizer goes with the result.
        shards: files with tensors -> bytes of tensors in them.
        peak_memory: estimate of the anonymous memory needed beyond the libraries', bytes; mapped files are not in it.
        warnings: what a person should hear.
    """

    destination: str
    method: str
    base_model: str
    models: tuple[str, ...]
    shared: str
    options: MergeOptions
    written: bool
    layouts: Mapping[str, str]
    tensors: int
    bytes: int
    merged: int
    copied: int
    kept: tuple[str, ...]
    groups: tuple[Group, ...]
    fallbacks: Mapping[str, Mapping[str, int]]
    tokenizer_of: str | None
    shards: Mapping[str, int]
    peak_memory: int
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def grouped(decisions: Sequence[Decision]) -> tuple[Group, ...]:
    """The decisions put together where tensors of one kind get the same."""
    groups: dict[Any, list[Decision]] = {}
    for one in decisions:
        shared = len(one.layers) > 1
        values = None if one.values is None else tuple(one.values.items())
        key = kind_of(one.name), shared, one.layers if shared else (), values, tuple(one.settings.items()), one.parents
        groups.setdefault(key, []).append(one)
    return tuple(
        Group(
            kind_of(one.name),
            component_of(one.name),
            tuple(sorted({layer for other in same for layer in other.layers})),
            len(one.layers) > 1,
            one.values,
            one.settings,
            one.parents,
            len(same),
        )
        for same in groups.values()
        for one in same[:1]
    )
