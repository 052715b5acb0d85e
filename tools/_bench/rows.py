"""How many rows a model can take at once."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], most: int, least: int = 1) -> int:
    """The most rows for which `fits` says yes, to an eighth: doubled until it says no, then halved in between.

    Args:
        fits: tries a number of rows; whoever does not fit at some number fits at none above.
        most: the most to try.
        least: the first to try.

    Returns:
        0 where not even `least` fits.
    """
    if not fits(least):
        return 0
    good, bad = least, most + 1
    while good < most and bad > most:
        tried = min(2 * good, most)
        if fits(tried):
            good = tried
        else:
            bad = tried
    while bad - good > max(1, good // 8):
        tried = (good + bad) // 2
        if fits(tried):
            good = tried
        else:
            bad = tried
    return good


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the CPU, has no memory left."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
