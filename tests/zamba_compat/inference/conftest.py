"""The trained tiny model, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from zamba_compat.inference.loading import Loaded, Loading, load

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"


@pytest.fixture(scope="session")
def tiny() -> Loaded:
    return load(str(TINY / "base"), Loading(load="fp32"))
