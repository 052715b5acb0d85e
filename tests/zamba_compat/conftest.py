"""Fixtures that several modules' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import synthetic
from support.fake_library import library, make_registry
from support.tokens import model_of
from zamba_compat import configure

__all__ = ["library", "make_registry"]


@pytest.fixture
def model(case: synthetic.Case, tmp_path: Path) -> Any:
    """The test's own `case` in bfloat16."""
    return model_of(case, tmp_path / "model")


@pytest.fixture
def native() -> Iterator[Any]:
    """Switches the loops on or off, and back on in the end."""
    yield lambda on: configure(native=on)
    configure(native=None)
