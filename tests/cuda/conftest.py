"""On a GPU: skipped where there is none. `make gpu` runs these, and they print which kernels ran."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zamba_compat  # noqa: F401

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no GPU"))
