"""Copies of one tensor, compared and combined a slice at a time."""

from __future__ import annotations

import math

import pytest
import torch

from zamba_compat.layout import copies


@pytest.fixture(autouse=True, params=[5, 1 << 20])
def slice_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SLICE", request.param)


def test_means_and_distances() -> None:
    tensors = list(torch.randn(3, 7, 4).bfloat16())
    wide = torch.stack(tensors).double()
    assert torch.equal(copies.mean(tensors), wide.mean(0).bfloat16())
    mixed = copies.combine(tensors, [0.5, -1.0, 2.0])
    assert torch.equal(mixed, (0.5 * wide[0] - wide[1] + 2 * wide[2]).bfloat16())
    assert copies.norm(tensors[0]) == pytest.approx(wide[0].norm().item())
    apart = (wide[1] - wide[0]).norm() / wide[0].norm()
    assert copies.relative_distance(tensors[0], tensors[1]) == pytest.approx(apart.item())
    flat = wide.flatten(1)
    torch.testing.assert_close(copies.inner_products(tensors), flat @ flat.T)


def test_distances_from_nothing() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert copies.relative_distance(zero, zero) == 0
    assert copies.relative_distance(zero, one) == math.inf
    assert math.isnan(copies.relative_distance(one, one * math.nan))
    assert math.isnan(copies.relative_distance(zero, one * math.nan))


def test_same_bits() -> None:
    a = torch.tensor([0.0, math.nan, 1.0])
    assert copies.same_bits(a, a.clone())
    assert not copies.same_bits(a, torch.tensor([-0.0, math.nan, 1.0]))
