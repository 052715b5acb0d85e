"""A broken checkpoint for each test, and what every forked process would import again."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.arena import Arena, build


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session", autouse=True)
def warm(armed: bool) -> None:
    import bitsandbytes  # noqa: F401
    import transformers.models.zamba2.modeling_zamba2  # noqa: F401


@pytest.fixture
def arena(base: Path, tmp_path: Path) -> Arena:
    return build(base, tmp_path / "arena")
