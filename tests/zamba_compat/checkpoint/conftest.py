"""What several of these tests ask for."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a directory that is not empty is replaced."""
    from zamba_compat.checkpoint.writing import staging

    if request.param == "two renames":
        monkeypatch.setattr(staging, "exchange", lambda a, b: False)
    return str(request.param)
