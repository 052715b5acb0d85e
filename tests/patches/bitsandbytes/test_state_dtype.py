"""A forward on a CPU leaves the quant state's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from zamba_compat._engine.registry import Registry
from zamba_compat._engine.releases import place

from .conftest import ADAPTERS, state_dtype, weights

bitsandbytes = pytest.importorskip("bitsandbytes")
Linear = Callable[..., Any]


def after_forward(linear: Linear) -> tuple[Any, Any, Any]:
    module = linear(64, 256, compute_dtype=torch.bfloat16)
    wanted = weights(module)
    x = torch.randn(3, 256, dtype=torch.bfloat16, requires_grad=True)
    module(x).sum().backward()
    return module, wanted, x.grad


@pytest.mark.skipif(not bitsandbytes.__version__.startswith("0.49."), reason="right in this release")
def test_stock(linear: Linear) -> None:
    assert after_forward(linear)[0].weight.quant_state.dtype == torch.bfloat16


def test_mended(linear: Linear) -> None:
    registry = Registry(ADAPTERS)
    torch.manual_seed(1)
    stock = after_forward(linear)[2]
    registry.arm()
    try:
        torch.manual_seed(1)
        module, wanted, gradient = after_forward(linear)
    finally:
        registry.disarm()
    assert module.weight.quant_state.dtype == torch.float32
    assert torch.equal(weights(module), wanted) and torch.equal(gradient, stock)


@pytest.mark.parametrize("release", ["0.48.2", "0.49.0", "0.49.2", "0.50.0"])
def test_releases(release: str) -> None:
    found = place(state_dtype.ADAPTER.since, state_dtype.ADAPTER.fixed, "fixed", release).kind
    assert found == ("inside" if release.startswith("0.49.") else "outside")
