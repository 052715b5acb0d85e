"""How far the stored copies of each shared tensor lie apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from zamba_compat.checkpoint.layouts.survey import Survey
from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.errors import ZambaCompatError
from zamba_compat.layout.copies import relative_distance
from zamba_compat.layout.quant_state_names import is_weight


@dataclass(frozen=True)
class Copies:
    """The stored copies of one shared tensor.

    Attributes:
        key: the canonical name.
        reference: the copy the others are compared with: the first in depth order, of an adapter the one in use.
        distances: stored name -> ||copy - reference|| / ||reference|| (Frobenius norms), quantized weights by their
            values; 0 for the reference itself, None where the shapes differ, the file is damaged, or the weights are in
            a format whose values are not read here and not equal bit for bit.
        equal: whether all are equal bit for bit.
        counts: False for an adapter: the copies at layers of other positions are in no use.
    """

    key: str
    reference: str
    distances: Mapping[str, float | None]
    equal: bool
    counts: bool

    @property
    def worst(self) -> float | None:
        """The largest distance; None where none is known. nan wins."""
        known = [distance for distance in self.distances.values() if distance is not None]
        return None if len(known) < 2 else max(known, key=lambda d: (d != d, d))


def compare_copies(found: Survey, components: Collection[str], progress: Progress | None = None) -> tuple[Copies, ...]:
    """Compare the copies of every shared tensor that is stored more than once, and of a stored tied head.

    Copies that differ where they may not are added to the faults, and so is what cannot be read.

    Args:
        found: the checkpoint.
        components: what to compare.
        progress: makes what shows progress.
    """
    if found.plan is None:
        return ()
    groups: dict[str, tuple[str, list[str], bool]] = {}
    for key, copies in found.plan.groups.items():
        if is_weight(key) and len(copies) > 1:
            shared = found.plan.sharing.parse(key)
            names = [copies[layer] for layer in sorted(copies)]
            adapter = shared is not None and shared.adapter is not None
            counts = not adapter or key in found.plan.unproven
            groups[key] = found.plan.sources[key] if adapter else names[0], names, counts
    embedding = f"{found.prefix}embed_tokens.weight"
    if found.tied_head is not None and embedding in found.tensors:
        groups[embedding] = embedding, [embedding, found.tied_head], True
    wanted = {key: group for key, group in groups.items() if found.component(key) in components}
    total = sum(found.nbytes(name) for _, names, _ in wanted.values() for name in names)
    made = []
    with counting(progress, "comparing copies", total) as update:
        for key, (reference, names, counts) in wanted.items():
            distances: dict[str, float | None] = {}
            equal = True
            for name in names:
                same, distances[name] = (True, 0.0) if name == reference else _apart(found, reference, name)
                equal = equal and same
                update(found.nbytes(name))
            made.append(Copies(key, reference, distances, equal, counts))
    _judge(found, made)
    return tuple(made)


def _apart(found: Survey, reference: str, name: str) -> tuple[bool, float | None]:
    try:
        if found.same(reference, name):
            return True, 0.0
        if found.kind(reference) or found.kind(name):
            return False, None
        a, b = found.read(reference), found.read(name)
        return False, relative_distance(a, b) if a.shape == b.shape else None
    except ZambaCompatError as error:
        found.faults.add(error)
        return False, None


def _judge(found: Survey, made: list[Copies]) -> None:
    assert found.plan is not None
    apart = [one for one in made if one.counts and not one.equal]
    lost = [one for one in apart if one.key in found.plan.unproven]
    for one in lost:
        found.faults.add(
            f"{one.key}: {', '.join(one.distances)} hold different tensors, and none of them is where the adapter "
            "belongs. Keep the right one only."
        )
    told = [one for one in apart if one not in lost]
    if told:
        worst = max(told, key=lambda one: (one.worst is None or one.worst != one.worst, one.worst or 0.0))
        by = "" if worst.worst is None else f", {worst.key} by {worst.worst:.3g}"
        found.faults.add(
            f"{found.checkpoint.path}: {len(told)} shared tensors are stored in copies that differ{by}. "
            "convert-checkpoint needs --resolve to say what becomes of them."
        )
