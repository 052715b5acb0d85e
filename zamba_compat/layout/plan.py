"""Which stored tensor fills which parameter, decided from names alone; and the copies of one tensor compared.

A checkpoint may hold a shared tensor once at its canonical layer (hub layout), at every layer that uses it (expanded,
or divergent when the copies differ), or only somewhere later (partial). `plan` maps all of them to the hub layout;
`Plan.resolve` compares the copies and applies the choice for copies that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from zamba_compat.errors import CheckpointError, DivergentCopiesError, MissingTensorError

from .copies import mean, relative_distance, same_bits
from .quant_state_names import holds_values, weight_of
from .sharing import SharingMap

if TYPE_CHECKING:
    from torch import Tensor

Read = Callable[[str], "Tensor"]
REMEDY_DIVERGENT = (
    "To tie them again: zamba-compat convert-checkpoint SRC DST --resolve mean (or first, karcher, absorb), or for "
    "this process zamba_compat.configure(divergent='mean')."
)


@dataclass(frozen=True)
class Divergence:
    """Copies of one shared tensor that differ.

    Attributes:
        key: the canonical name.
        copies: the stored names, in depth order.
        distance: the largest ||copy - first|| / ||first|| (Frobenius norms), dimensionless.
    """

    key: str
    copies: tuple[str, ...]
    distance: float


@dataclass(frozen=True)
class Plan:
    """How the stored tensors fill a model.

    Attributes:
        sharing: the sharing map of the model to fill (`SharingMap.untied` when differing copies are kept apart).
        sources: parameter name -> stored name, one entry per parameter that is loaded.
        groups: canonical name -> {layer: stored name}, every stored copy of every shared tensor.
        unused: stored names that fill nothing: copies, and adapters in another block's slots that are also in place.
        unproven: canonical names of adapters found only in another block's slots, several times.
    """

    sharing: SharingMap
    sources: Mapping[str, str]
    groups: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether the checkpoint is in the hub layout already."""
        return not self.unused and all(name == stored for name, stored in self.sources.items())

    def divergences(self, read: Read) -> list[Divergence]:
        """The shared tensors whose stored copies differ. Reads every copy, one tensor at a time.

        An adapter belongs to one position, so its copy at that position's layer is the one that counts and the others
        are not compared.

        Raises:
            CheckpointError: copies whose dtypes or shapes differ, or an adapter that is only in other blocks' slots and
                there in several versions; or another number of blocks than the config's.
        """
        found = []
        for key, copies in self.groups.items():
            is_adapter = _adapter_of(self.sharing, key) is not None
            if len(copies) < 2 or (is_adapter and key not in self.unproven):
                continue
            names = tuple(copies[layer] for layer in sorted(copies))
            distance = _distance(names, read)
            if distance is None:
                continue
            if key in self.unproven:
                raise CheckpointError(
                    f"{', '.join(names)} hold different tensors, and none of them is where the adapter belongs.",
                    where=key,
                    remedy="Keep the right one only.",
                )
            found.append(Divergence(key, names, distance))
        if found:
            self._refuse_other_sharing()
        return found

    def _refuse_other_sharing(self) -> None:
        """Blocks at the first K positions alone that differ are K blocks, whatever the config says.

        To keep, average or choose among them would make of the model what it never was.
        """
        hybrid = self.sharing.hybrid_layers
        blocks = [copies for key, copies in self.groups.items() if _adapter_of(self.sharing, key) is None]
        stored = {layer for copies in blocks for layer in copies}
        count = len(stored)
        if self.sharing.num_blocks < count < len(hybrid) and stored == set(hybrid[:count]):
            raise CheckpointError(
                f"num_mem_blocks is {self.sharing.num_blocks}, but {count} different blocks are stored, at layers "
                f"{', '.join(map(str, sorted(stored)))}.",
                where=next(iter(blocks[0].values())),
                remedy=f"Use the config.json that belongs to these tensors; num_mem_blocks is probably {count}.",
            )

    def resolve(self, read: Read, choice: str) -> tuple[Plan, dict[str, Tensor], list[Divergence]]:
        """Compare the copies and apply `choice` ("keep", "first", "mean" or "error") to those that differ.

        Returns:
            the plan to load by, the tensors that had to be computed (parameter name -> tensor), the divergences.

        Raises:
            DivergentCopiesError: copies differ and `choice` is "error", or is "mean" and they are quantized.
        """
        divergences = self.divergences(read)
        if not divergences or choice == "first":
            return self, {}, divergences
        if choice == "error":
            worst = "; ".join(f"{d.key} ({d.distance:.2%}, {len(d.copies)} copies)" for d in divergences[:8])
            raise DivergentCopiesError(
                f"{len(divergences)} shared tensors are stored in copies that differ: {worst}", remedy=REMEDY_DIVERGENT
            )
        if choice == "mean":
            return self, {d.key: _mean(d, read) for d in divergences}, divergences
        return self.untied(), {}, divergences

    def untied(self) -> Plan:
        """The plan that keeps every copy, each position its own block; one without a copy takes the first."""
        sources = {name: stored for name, stored in self.sources.items() if name not in self.groups}
        for key in self.groups:
            adapter = _adapter_of(self.sharing, key)
            for position in self.sharing.positions:
                name = self.sharing.at_layer(key, position.layer)
                if adapter is not None:
                    if adapter == position.index:
                        sources[name] = self.sources[key]
                elif position.canonical_layer == self.sharing.layer_of(key):
                    sources[name] = self.groups[key].get(position.layer, self.sources[key])
        used = set(sources.values())
        unused = tuple(k for copies in self.groups.values() for k in copies.values() if k not in used)
        return replace(self, sharing=self.sharing.untied(), sources=sources, unused=unused)


def plan(keys: Iterable[str], sharing: SharingMap, *, where: str | None = None, complete: bool = True) -> Plan:
    """Map the stored names of a checkpoint to the parameters of the model, in the hub layout.

    Args:
        keys: every stored name; a base model's checkpoint without the "model." prefix will do.
        sharing: the sharing map of the checkpoint's config.
        where: what to call the checkpoint in errors.
        complete: raise when a shared tensor is stored nowhere.

    Raises:
        MissingTensorError: shared tensors of which no copy is stored.
    """
    sources: dict[str, str] = {}
    groups: dict[str, dict[int, str]] = {}
    prefix = "model."
    for key in keys:
        shared = sharing.parse(key)
        if shared is None or shared.layer not in sharing.hybrid_layers:
            sources[key] = key
            continue
        prefix = shared.prefix
        groups.setdefault(sharing.canonical_key(key), {})[shared.layer] = key

    if complete:
        held = {weight_of(key) for key in groups if holds_values(key)} | groups.keys()
        missing = [key for key in sharing.shared_keys(prefix=prefix) if key not in held]
        if missing:
            raise MissingTensorError(
                f"no copy of {len(missing)} shared tensors is stored at any layer: {_named(missing, sharing)}.",
                where=where,
                remedy="The checkpoint is incomplete: download or convert it again.",
            )

    unused, unproven = [], []
    for canonical, copies in groups.items():
        ranked = _ranked(sharing, canonical, copies)
        sources[canonical] = copies[ranked[0]]
        unused += [copies[layer] for layer in ranked[1:]]
        if len(copies) > 1 and all(sharing.is_misplaced(key) for key in copies.values()):
            unproven.append(canonical)
    return Plan(sharing, sources, groups, tuple(unused), tuple(unproven))


def _adapter_of(sharing: SharingMap, key: str) -> int | None:
    shared = sharing.parse(key)
    return None if shared is None else shared.adapter


def _ranked(sharing: SharingMap, canonical: str, copies: Mapping[int, str]) -> list[int]:
    """The layers that store a copy, best first: an adapter's own position, the right block, depth."""
    adapter = _adapter_of(sharing, canonical)
    own = None if adapter is None else sharing.positions[adapter].layer

    def rank(layer: int) -> tuple[bool, bool, int]:
        return layer != own, sharing.is_misplaced(copies[layer]), layer

    return sorted(copies, key=rank)


def _named(missing: list[str], sharing: SharingMap) -> str:
    names = []
    for key in missing:
        adapter = _adapter_of(sharing, key)
        where = "" if adapter is None else f" (position {adapter}, layer {sharing.positions[adapter].layer})"
        names.append(key + where)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _distance(names: tuple[str, ...], read: Read) -> float | None:
    """None when all copies are equal bit for bit, else the largest relative distance to the first one."""
    first, worst = read(names[0]), None
    for name in names[1:]:
        copy = read(name)
        if copy.dtype != first.dtype or copy.shape != first.shape:
            raise CheckpointError(
                f"is {copy.dtype} {tuple(copy.shape)} but its copy {names[0]} is {first.dtype} {tuple(first.shape)}.",
                where=name,
                remedy="Copies of a shared tensor must agree in dtype and shape; remove the wrong one.",
            )
        if copy.data_ptr() != first.data_ptr() and not same_bits(first, copy):
            worst = max(worst or 0.0, relative_distance(first, copy))
    return worst


def _mean(divergence: Divergence, read: Read) -> Tensor:
    tensors = [read(name) for name in divergence.copies]
    if not tensors[0].is_floating_point():
        raise DivergentCopiesError(
            f"copies differ and are stored as {tensors[0].dtype}, which cannot be averaged.",
            where=divergence.key,
            remedy="Choose divergent='keep' or 'first', or convert the unquantized checkpoint.",
        )
    return mean(tensors)
