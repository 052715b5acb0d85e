"""The mean on the sphere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zamba_compat.checkpoint.resolving.sphere import karcher_weights


def mean(copies: list[Tensor]) -> Tensor:
    weights = karcher_weights(copies)
    assert weights is not None
    return sum((weight * copy.double() for weight, copy in zip(weights, copies, strict=True)), torch.zeros(()))


def test_two_copies_meet_half_way_of_slerp() -> None:
    a = torch.randn(50, 40, dtype=torch.float64)
    b = 1.7 * (a + 0.6 * torch.randn(50, 40, dtype=torch.float64))
    angle = torch.arccos((a * b).sum() / a.norm() / b.norm())
    half = torch.sin(angle / 2) / torch.sin(angle) * (a / a.norm() + b / b.norm())
    torch.testing.assert_close(mean([a, b]), half * (a.norm() + b.norm()) / 2)


def test_it_is_where_the_tangents_to_all_copies_cancel() -> None:
    base = torch.randn(300, dtype=torch.float64)
    copies = [base + 0.8 * torch.randn(300, dtype=torch.float64) for _ in range(5)]
    found = mean(copies)
    point = found / found.norm()
    tangents = []
    for copy in copies:
        unit = copy / copy.norm()
        angle = torch.arccos((point @ unit).clamp(-1, 1))
        tangents.append(angle * (unit - (point @ unit) * point) / torch.sin(angle))
    assert torch.stack(tangents).sum(0).norm() < 1e-10
    assert found.norm().item() == pytest.approx(torch.stack([c.norm() for c in copies]).mean().item())
    assert found.norm() > torch.stack(copies).mean(0).norm()
    assert (found - torch.stack(copies).mean(0) * (found.norm() / torch.stack(copies).mean(0).norm())).norm() > 1e-3


def test_unequal_numbers_of_copies_pull_unequally() -> None:
    a, b = torch.eye(2, dtype=torch.float64)
    found = mean([a, a, b])
    assert torch.atan2(found[1], found[0]).item() == pytest.approx(torch.pi / 6)


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-4])
def test_copies_that_nearly_agree(apart: float) -> None:
    a = torch.randn(40, 30)
    b = a + apart * torch.randn(40, 30)
    torch.testing.assert_close(mean([a, b]), (a.double() + b.double()) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", [lambda a: 0 * a, lambda a: -a, lambda a: a * float("nan")])
def test_where_there_is_no_such_mean(other) -> None:
    a = torch.randn(9, 9)
    assert karcher_weights([a, other(a)]) is None
