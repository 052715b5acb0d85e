"""The loops in C that a test needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from zamba_compat import configure
from zamba_compat.cpu.native import kernels, library, team

Loops = TypeVar("Loops")
WIDE = library() is not None and bool(library().zamba_compat_wide())  # type: ignore[union-attr]


def there(found: Loops | None) -> Loops:
    """These loops, or a skipped test. Where those over bfloat16 are there, on x86, all others are too."""
    if found is None:
        assert kernels() is None or kernels().kind == "neon"  # type: ignore[union-attr]
        pytest.skip("no loops in C here")
    return found


def read_together(together: bool, patch: pytest.MonkeyPatch) -> None:
    """Have rows read several at once, or one after the other, whatever is faster on this processor."""
    _told("together", together, patch)


def read_wide(wide: bool, patch: pytest.MonkeyPatch) -> None:
    """Have loops take AVX-512, or leave it; a skipped test where there is none."""
    if wide and not WIDE:
        pytest.skip("no AVX-512 here")
    _told("wide", wide, patch)


def _told(name: str, value: bool, patch: pytest.MonkeyPatch) -> None:
    if library() is not None:
        patch.setattr(library(), f"zamba_compat_{name}", lambda: value)
        patch.setattr(team, "_of", cache(team._of.__wrapped__))


def is_off(get: Callable[[], Any]) -> bool:
    """Whether there are no loops while they are switched off."""
    configure(native=False)
    try:
        return get() is None
    finally:
        configure(native=None)


def equal_by_threads(run: Callable[[], Tensor]) -> bool:
    """Whether the same comes out with every number of threads, more than there is work for among them."""
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 9):
            torch.set_num_threads(number)
            found.append(run())
    finally:
        torch.set_num_threads(threads)
    return all(torch.equal(found[0], other) for other in found)
