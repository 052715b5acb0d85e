"""The real mergekit, from a folder of its own, with its adapters and without them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlays
import zamba_compat

WITHOUT = "without"
FAILS = pytest.mark.xfail(strict=True, reason="mergekit by itself")


@pytest.fixture(scope="session", autouse=True)
def installed() -> Iterator[None]:
    """mergekit on the path. Imported here, before a test arms or disarms anything."""
    folders = [str(folder) for folder in overlays.mergekit()]
    sys.path[:0] = folders
    try:
        import mergekit.merge
        import mergekit.scripts.run_yaml

        assert Path(mergekit.merge.__file__).is_relative_to(folders[0])
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)


@pytest.fixture(params=["with", pytest.param(WITHOUT, marks=[FAILS, pytest.mark.stock])])
def mended(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both ways; without the adapters the test has to fail."""
    yield from _either(request.param)


@pytest.fixture(params=["with", pytest.param(WITHOUT, marks=pytest.mark.stock)])
def either(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both ways; the test passes with the adapters and without them."""
    yield from _either(request.param)


@pytest.fixture
def armed() -> Iterator[bool]:
    """With the adapters."""
    yield from _either("with")


def _either(way: str) -> Iterator[bool]:
    from mergekit.architecture.auto import infer_architecture_info
    from mergekit.io.tasks import LoaderCache

    zamba_compat.install() if way == "with" else zamba_compat.uninstall()
    # mergekit keeps both for the whole process, by the models' names.
    LoaderCache.loaders.clear()
    infer_architecture_info.cache_clear()
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it warns of tokenizers that these models do not have, traceback and all
    try:
        yield way == "with"
    finally:
        logging.disable(disabled)
        LoaderCache.loaders.clear()
        zamba_compat.install()
