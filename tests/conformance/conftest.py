"""The same tests under every release: with the import, or stock to see what upstream gets wrong by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from conformance.helpers import Checkpoint, checkpoints, unchanged
from conformance.mending import adapters_of

STOCK = os.environ.get("ZAMBA_COMPAT_TEST_STOCK") == "1"

if not STOCK:
    import zamba_compat  # noqa: F401


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """checkpoint(pattern, layout, ...): a folder that every test may read and none may write to."""
    return checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def nothing_shared_is_written_to() -> Iterator[None]:
    yield
    assert unchanged(), "this test wrote to a tensor that others read too"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a stock run, what an adapter mends must fail: a defect that upstream mends shows up as a failure here."""
    if not STOCK:
        return
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if item.get_closest_marker("ours"):
            item.add_marker(pytest.mark.skip(reason="tests this package's own interface"))
        elif names := sorted(set(adapters_of(item, version("transformers")))):
            item.add_marker(pytest.mark.xfail(strict=True, reason=f"mended by {', '.join(names)}"))
