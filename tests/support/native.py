"""The loops in C that a test needs."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import pytest

from zamba_compat.native import kernels, library, team

Loops = TypeVar("Loops")


def there(found: Loops | None) -> Loops:
    """These loops, or a skipped test. Where those over bfloat16 are there, on x86, all others are too."""
    if found is None:
        assert kernels() is None or kernels().kind == "neon"  # type: ignore[union-attr]
        pytest.skip("no loops in C here")
    return found


def read_together(together: bool, patch: pytest.MonkeyPatch) -> None:
    """Have rows read several at once, or one after the other, whatever is faster on this processor."""
    if library() is not None:
        patch.setattr(library(), "zamba_compat_together", lambda: together)
        patch.setattr(team, "_of", cache(team._of.__wrapped__))
