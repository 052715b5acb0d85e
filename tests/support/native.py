"""The loops in C that a test needs."""

from __future__ import annotations

from typing import TypeVar

import pytest

from zamba_compat.native import kernels

Loops = TypeVar("Loops")


def there(found: Loops | None) -> Loops:
    """These loops, or a skipped test. Where those over bfloat16 are there, on x86, all others are too."""
    if found is None:
        assert kernels() is None or kernels().kind == "neon"  # type: ignore[union-attr]
        pytest.skip("no loops in C here")
    return found
