"""The copies of one tensor, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.layout.copies import relative_distance, same_bits
from zamba_compat.layout.plan import Divergence
from zamba_compat.layout.sharing import SharingMap

if TYPE_CHECKING:
    from torch import Tensor

    from zamba_compat.checkpoint.layouts.contents import Contents


def compare(contents: Contents, progress: Progress | None = None) -> tuple[list[Divergence], tuple[str, ...]]:
    """The tensors whose copies differ, and notes. Reads every copy, one tensor at a time.

    Args:
        contents: the checkpoint.
        progress: makes what shows progress, in bytes.

    Raises:
        CheckpointError: an adapter that is in other blocks' slots only, and there in several versions.
    """
    copies = [name for group in contents.plan.groups.values() if len(group) > 1 for name in group.values()]
    embedding_key = f"{contents.prefix}embed_tokens.weight"
    if contents.tied_head is not None:
        copies += [embedding_key, contents.tied_head]
    with counting(progress, "comparing", sum(contents.tensors[name].nbytes for name in copies)) as update:

        def counted(name: str) -> Tensor:
            update(contents.tensors[name].nbytes)
            return contents.read(name)

        found = contents.plan.divergences(counted)
        if contents.tied_head is not None:
            embedding, head = counted(embedding_key), counted(contents.tied_head)
            if not same_bits(embedding, head):
                names = embedding_key, contents.tied_head
                found.append(Divergence(embedding_key, names, relative_distance(embedding, head)))
        idle = _idle_adapters(contents, counted)
    if not idle:
        return found, ()
    note = f"{idle} copies of adapters, at layers that do not use them, differ from the ones in use; they are left out"
    return found, (note,)


def table(divergences: Iterable[Divergence], sharing: SharingMap) -> str:
    """Blocks x tensors with the largest relative distance to the first copy, as text."""
    rows: dict[str, dict[str, float]] = {}
    for found in divergences:
        shared = sharing.parse(found.key)
        column = f"layer {shared.layer}" if shared is not None else "-"
        rows.setdefault(shared.suffix if shared is not None else found.key, {})[column] = found.distance
    columns = sorted({c for row in rows.values() for c in row}, key=lambda c: (len(c), c))
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"  {column:>10}" for column in columns)]
    for name, row in rows.items():
        cells = (f"{row[column]:.3e}" if column in row else "" for column in columns)
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>10}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _idle_adapters(contents: Contents, read: Callable[[str], Tensor]) -> int:
    """Copies of adapters at layers that do not use them, different from the ones in use."""
    plan, count = contents.plan, 0
    for key, copies in plan.groups.items():
        shared = plan.sharing.parse(key)
        if len(copies) > 1 and shared is not None and shared.adapter is not None and key not in plan.unproven:
            used = read(plan.sources[key])
            others = [name for name in copies.values() if name != plan.sources[key]]
            count += sum(not same_bits(used, read(name)) for name in others)
    return count
