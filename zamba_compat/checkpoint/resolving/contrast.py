"""How far two checkpoints lie apart, tensor by tensor, whatever layouts they are in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zamba_compat.checkpoint.layouts.components import COMPONENTS, OTHER, layers_of
from zamba_compat.checkpoint.layouts.survey import Survey
from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.errors import ZambaCompatError
from zamba_compat.layout.copies import ratio, squares
from zamba_compat.layout.quant_state_names import base_of, is_weight
from zamba_compat.layout.sharing import SharingMap

from .copied import Copies

_CLASSIFIER, _HEAD, _EMBEDDING = "score.weight", "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Pair:
    """One tensor in both checkpoints.

    Attributes:
        name: the canonical name, in the checkpoint that keeps more copies apart.
        component: the part of the model it belongs to.
        layers: the layers that use it; () for one outside of the layers.
        a, b: the names it is read from.
        distance: ||b - a|| / ||a|| (Frobenius norms), quantized weights by their values; infinite for a zero `a` and
            another `b`; None where they cannot be compared.
        reason: why not.
    """

    name: str
    component: str
    layers: tuple[int, ...]
    a: str
    b: str
    distance: float | None
    reason: str = ""


@dataclass(frozen=True)
class Apart:
    """One component in both checkpoints.

    Attributes:
        tensors: compared.
        equal: those of them that do not differ at all in value.
        distance: sqrt(sum ||b - a||^2 / sum ||a||^2) over its tensors; None when none was compared.
        largest: the name of the tensor that differs most, relative to itself; None when none differs.
    """

    tensors: int
    equal: int
    distance: float | None
    largest: str | None


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints.

    Attributes:
        tensors: in both, under canonical names.
        components: component -> distance.
        total: over all of them.
        only_a, only_b: canonical names of tensors that only one has.
        config: entries that differ, name -> (a, b); None for an absent one.
    """

    tensors: tuple[Pair, ...]
    components: Mapping[str, Apart]
    total: Apart
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    config: Mapping[str, tuple[Any, Any]]


class _Side:
    """The parameters of one checkpoint, each position apart where copies differ."""

    def __init__(self, found: Survey, copies: Sequence[Copies]) -> None:
        self.found = found
        plan = found.plan
        if plan is not None and any(one.counts and not one.equal and one.key in plan.groups for one in copies):
            plan = plan.untied()
        self.sharing: SharingMap | None = None if plan is None else plan.sharing
        sources = dict(plan.sources) if plan is not None else {name: name for name in found.tensors}
        heads = {} if found.tied_head is None else {_HEAD: found.tied_head}
        self.sources = {
            self.public(base_of(name)): stored for name, stored in {**sources, **heads}.items() if is_weight(name)
        }

    def public(self, name: str) -> str:
        """With "model." in front, which a base model's names lack."""
        bare = self.found.prefix == "" and name not in (_HEAD, _CLASSIFIER)
        return f"model.{name}" if bare else name

    def find(self, name: str) -> str | None:
        """What is stored for a parameter of either checkpoint."""
        stored = self.sources.get(name)
        if stored is None and self.sharing is not None:
            stored = self.sources.get(self.sharing.canonical_key(name))
            if stored is None and name == _HEAD and self.sharing.tied_embeddings:
                stored = self.sources.get(_EMBEDDING)
        return stored


class _Sums:
    """Squares summed over tensors."""

    def __init__(self) -> None:
        self.apart = self.scale = 0.0
        self.tensors = self.equal = 0
        self.worst: tuple[tuple[bool, float], str] | None = None

    def add(self, name: str, apart: float, scale: float) -> None:
        self.apart, self.scale, self.tensors = self.apart + apart, self.scale + scale, self.tensors + 1
        self.equal += apart == 0
        rank = (apart != apart, ratio(apart, scale))
        if apart != 0 and (self.worst is None or rank > self.worst[0]):
            self.worst = rank, name

    def result(self) -> Apart:
        distance = ratio(self.apart, self.scale) if self.tensors else None
        return Apart(self.tensors, self.equal, distance, None if self.worst is None else self.worst[1])


def contrast(
    surveys: Sequence[Survey],
    copies: Sequence[Sequence[Copies]],
    components: Collection[str],
    progress: Progress | None = None,
) -> Comparison:
    """Compare two checkpoints under canonical names; reads every tensor of both, one pair at a time.

    Where copies of one differ, each position is compared by itself. What cannot be read is added to the faults.

    Args:
        surveys: the two checkpoints.
        copies: what `compare_copies` found in each.
        components: what to compare; tensors that are no part of the model are left out.
        progress: makes what shows progress.
    """
    a, b = (_Side(found, its) for found, its in zip(surveys, copies, strict=True))
    maps = [side.sharing for side in (a, b) if side.sharing is not None]
    finer = max(maps, key=lambda sharing: sharing.num_blocks, default=None)
    names = dict.fromkeys(name if finer is None else finer.canonical_key(name) for name in (*a.sources, *b.sources))
    found = [(name, a.find(name), b.find(name)) for name in names]
    kept = [(name, x, y, _component((a, x), (b, y))) for name, x, y in found]
    kept = [entry for entry in kept if entry[3] in components]
    sums = {component: _Sums() for component in COMPONENTS if component in components}
    total, pairs = _Sums(), []
    size = sum(a.found.nbytes(x) + b.found.nbytes(y) for _, x, y, _ in kept if x is not None and y is not None)
    with counting(progress, "comparing", size) as update:
        for name, x, y, component in kept:
            if x is None or y is None:
                continue
            both, reason = _measure(a.found, x, b.found, y)
            update(a.found.nbytes(x) + b.found.nbytes(y))
            if both is not None:
                sums[component].add(name, *both)
                total.add(name, *both)
            distance = None if both is None else ratio(*both)
            pairs.append(Pair(name, component, layers_of(name, finer), x, y, distance, reason))
    return Comparison(
        tensors=tuple(pairs),
        components={component: one.result() for component, one in sums.items()},
        total=total.result(),
        only_a=tuple(name for name, x, y, _ in kept if y is None and x is not None),
        only_b=tuple(name for name, x, y, _ in kept if x is None and y is not None),
        config=_changes(a.found.config, b.found.config),
    )


def _component(*stored: tuple[_Side, str | None]) -> str:
    return next((side.found.component(name) for side, name in stored if name is not None), OTHER)


def _measure(a: Survey, x: str, b: Survey, y: str) -> tuple[tuple[float, float] | None, str]:
    """(||y - x||^2, ||x||^2), or None and why not."""
    kind = a.kind(x) or b.kind(y)
    if kind is not None:
        try:
            if a.same(x, y, b):
                return (0.0, 0.0), ""
        except ZambaCompatError as error:
            a.faults.add(error)
            return None, str(error)
        return None, f"in the format of {kind}, whose values are not read here"
    tensors = []
    for found, name in ((a, x), (b, y)):
        try:
            tensors.append(found.read(name))
        except ZambaCompatError as error:
            found.faults.add(error)
            return None, str(error)
    if tensors[0].shape != tensors[1].shape:
        return None, f"{list(tensors[0].shape)} and {list(tensors[1].shape)}"
    return squares(tensors[0], tensors[1]), ""


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}
