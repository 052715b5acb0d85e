"""The same tests under every release: with the import, or stock to see what upstream gets wrong by itself."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest

STOCK = os.environ.get("ZAMBA_COMPAT_TEST_STOCK") == "1"
EXPECTED = Path(__file__).with_name("expected_stock_failures.json")

if not STOCK:
    import zamba_compat  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a stock run, what is known to fail must fail: a defect that upstream mends shows up as a failure here."""
    if not STOCK:
        return
    here = str(Path(__file__).parent)
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    known = set(expected.get(version("transformers"), ()))
    for item in items:
        if not str(item.path).startswith(here):
            continue
        if item.get_closest_marker("ours"):
            item.add_marker(pytest.mark.skip(reason="tests this package's own interface"))
        elif item.nodeid.split("conformance/", 1)[1] in known:
            item.add_marker(pytest.mark.xfail(strict=True, reason="stock transformers is wrong here"))
