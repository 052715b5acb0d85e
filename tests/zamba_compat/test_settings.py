from __future__ import annotations

import sys

import pytest

from zamba_compat.errors import ZambaCompatError
from zamba_compat.settings import configure, settings


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZAMBA_COMPAT_DIVERGENT", raising=False)
    monkeypatch.setattr(sys.modules["zamba_compat.settings"], "_configured", {})


def test_default_environment_and_configure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings().divergent == "keep"
    monkeypatch.setenv("ZAMBA_COMPAT_DIVERGENT", "Mean")
    assert settings().divergent == "mean"
    assert configure(divergent="first").divergent == "first"
    assert settings().divergent == "first"
    assert configure(divergent=None).divergent == "mean"


def test_what_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZambaCompatError, match="keep, first, mean, error"):
        configure(divergent="last")
    with pytest.raises(ZambaCompatError, match="Settings: divergent"):
        configure(divergence="first")
    monkeypatch.setenv("ZAMBA_COMPAT_DIVERGENT", "last")
    with pytest.raises(ZambaCompatError, match="environment variable ZAMBA_COMPAT_DIVERGENT"):
        settings()
