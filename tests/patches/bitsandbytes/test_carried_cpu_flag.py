"""A module from another CPU computes here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from .conftest import weights

bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.49")


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: False)


@pytest.fixture
def carried(linear: Callable[..., Any]) -> Iterator[Any]:
    module = linear(64, 256, compute_dtype=torch.float32)
    module.support_avx512bf16_for_cpu = True
    yield module


@pytest.mark.skipif(bool(bitsandbytes.functional.has_avx512bf16()), reason="the kernel is there")
def test_stock(carried: Any) -> None:
    x, wanted = torch.randn(3, 256), weights(carried)
    assert float((carried(x) - x @ wanted.T).norm() / (x @ wanted.T).norm()) > 0.5


@pytest.mark.usefixtures("armed")
def test_mended(carried: Any, linear: Callable[..., Any]) -> None:
    x, wanted = torch.randn(3, 256), weights(carried)
    for _ in range(2):
        assert torch.allclose(carried(x), x @ wanted.T, atol=1e-4)
    uneven = linear(80, 256)
    uneven.support_avx512bf16_for_cpu = True
    assert uneven(x).shape == (3, 80)
