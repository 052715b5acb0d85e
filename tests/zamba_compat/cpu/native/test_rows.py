"""A bfloat16 matrix times a vector: one rounding from exact, of any size and any part of a wider matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.native import equal_by_threads, is_off, read_together, there
from zamba_compat.cpu.native import rows
from zamba_compat.cpu.native.rows import Loop, is_matrix


@pytest.fixture(params=[False, True], ids=["one by one", "together"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loop:
    read_together(request.param, monkeypatch)
    return there(rows.loop())


def normal(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size))).bfloat16()


def product(loop: Loop, weight: Tensor, x: Tensor) -> Tensor:
    assert is_matrix(weight)
    out, room = torch.full((len(weight),), torch.nan).bfloat16(), torch.full((len(x),), torch.nan)
    loop.product(weight, x, room, out)
    return out


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (5, 31), (64, 32), (7, 33), (200, 96), (1001, 128), (300, 2064)])
def test_one_rounding_from_exact(loop: Loop, size: tuple[int, int]) -> None:
    weight, x = normal(*size), normal(size[1])
    exact = weight.double() @ x.double()
    near_zero = 1e-6 * (weight.double().abs() @ x.double().abs()).max()  # where sums cancel
    found = product(loop, weight, x)
    assert ((found.double() - exact).abs() <= 1.01 * 2**-8 * exact.abs() + near_zero).all()
    # A part of a wider matrix's columns, which begins anywhere.
    wider = torch.full((size[0], size[1] + 5), torch.nan).bfloat16()
    wider[:, 3:-2] = weight
    assert torch.equal(product(loop, wider[:, 3:-2], x), found)


@pytest.mark.parametrize("column", [0, 15, 16, 47, 48, 50])
def test_what_is_no_number_stays_none(loop: Loop, column: int) -> None:
    """In its row alone, and of either sign where it is infinite."""
    weight, x = torch.ones(4, 51).bfloat16(), torch.ones(51).bfloat16()
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        weight[row, column] = value
    assert product(loop, weight, x).isnan().tolist() == [True, False, False, False]
    assert product(loop, weight, x)[1:].tolist() == [torch.inf, -torch.inf, 51]


def test_any_number_of_threads(loop: Loop) -> None:
    weight, x = normal(77, 130), normal(130)
    assert equal_by_threads(lambda: product(loop, weight, x))


def test_what_is_no_matrix() -> None:
    weight = normal(4, 8)
    assert is_matrix(weight) and is_matrix(weight[1:, 2:])
    assert not is_matrix(weight.float()) and not is_matrix(weight.T) and not is_matrix(weight[0])
    assert not is_matrix(weight[:, ::2]) and not is_matrix(weight[:0]) and not is_matrix(weight.to("meta"))
    odd = torch.zeros(65, dtype=torch.uint8)[1:].view(torch.uint8)
    if odd.data_ptr() % 2:
        assert not is_matrix(torch.frombuffer(odd.numpy(), dtype=torch.bfloat16).view(4, 8))


def test_switched_off(loop: Loop) -> None:
    assert is_off(rows.loop)
