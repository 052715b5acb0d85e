"""Search what a checkpoint stores for NaN and infinity."""

from __future__ import annotations

from zamba_compat.checkpoint.dtypes import all_finite, bytes_of, in_chunks
from zamba_compat.checkpoint.layouts.survey import Survey
from zamba_compat.checkpoint.progress import Progress, counting
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import CheckpointError


def search(found: Survey, progress: Progress | None = None) -> tuple[str, ...]:
    """The stored names of tensors that hold NaN or infinity, parts of quant states among them; a fault names them.

    Reads every tensor once, a piece at a time. What cannot be read is added to the faults.

    Args:
        found: the checkpoint.
        progress: makes what shows progress.
    """
    stored = found.checkpoint.tensors
    bad = []
    with counting(progress, "searching", sum(info.nbytes for info in stored.values())) as update:
        for name, info in stored.items():
            if name not in found.unreadable and found.faults.attempt(_is_finite, found, name) is False:
                bad.append(name)
            update(info.nbytes)
    if bad:
        what = f"{len(bad)} tensors hold NaN or infinity: {listed(bad)}."
        remedy = "Merging and quantizing refuse them; get the checkpoint again, or look where it was trained."
        found.faults.add(CheckpointError(what, where=str(found.checkpoint.path), remedy=remedy))
    return tuple(bad)


def _is_finite(found: Survey, name: str) -> bool:
    data = bytes_of(found.checkpoint.read(name))
    dtype = found.checkpoint.tensors[name].dtype
    return all(all_finite(chunk, dtype) for chunk in in_chunks(data))
