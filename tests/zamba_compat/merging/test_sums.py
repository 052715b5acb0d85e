"""Sums are the same whichever way a tensor is cut: pieces for the threads, blocks within them."""

from __future__ import annotations

import math

import pytest
import torch

from zamba_compat.merging.blocks import BLOCK
from zamba_compat.merging.sums import RowSlerp, Run, Sum, Weighted, WholeSlerp
from zamba_compat.merging.workers import PIECE, Workers

SIZES = [0, 1, 5, 2**17 - 1, 2**17, 2**17 + 1, PIECE, PIECE + 1, 2 * PIECE + 2**17 + 3]


def summed(
    what: Sum, tensors: list[torch.Tensor], dtype: torch.dtype, told: list[tuple[str, int]] | None = None
) -> torch.Tensor:
    with Workers() as workers:
        pieces = what.pieces(tensors, Run(workers, dtype, lambda *one: None if told is None else told.append(one)))
        return torch.cat([piece.clone() for piece in pieces])


def parents(size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [torch.randn(size, generator=generator).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_weighted_is_the_sum_in_float32_rounded_once(size: int, dtype: torch.dtype) -> None:
    a, b = parents(size, dtype)
    expected = (a.float() * 0.3).add_(b.float(), alpha=0.8).to(dtype)
    assert torch.equal(summed(Weighted((0.3, 0.8)), [a, b], dtype), expected)


@pytest.mark.parametrize("size", SIZES[2:])
def test_the_angle_is_that_of_the_whole_tensor(size: int) -> None:
    a, b = parents(size, torch.float32)
    b = b + 0.5 * a
    angle = math.acos(float(torch.dot(a.double(), b.double()) / a.double().norm() / b.double().norm()))
    weights = [math.sin(part * angle) / math.sin(angle) for part in (0.7, 0.3)]
    expected = a.double() * weights[0] + b.double() * weights[1]
    torch.testing.assert_close(summed(WholeSlerp(0.3), [a, b], torch.float32).double(), expected, rtol=1e-5, atol=1e-6)


ROWS = [(3, 7), (5, 2, 9), (BLOCK // 1000 + 2, 1000), (3, BLOCK - 1), (2, BLOCK + 5), (3 * PIECE // 2000 + 1, 2000)]


def rows(shape: tuple[int, ...], apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    a, noise = (one.reshape(shape) for one in parents(math.prod(shape), torch.float32))
    return a, a + apart * noise


@pytest.mark.parametrize("shape", [*ROWS, (2, PIECE + 3)])
def test_every_row_has_an_angle_of_its_own(shape: tuple[int, ...]) -> None:
    a, b = rows(shape, 0.5)
    b[1] *= -3  # beyond a right angle, and of another length
    x, y = (one.reshape(shape[0], -1).double() for one in (a, b))
    angle = torch.acos((x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1))[:, None]
    expected = (torch.sin(0.7 * angle) * x + torch.sin(0.3 * angle) * y) / torch.sin(angle)
    found = summed(RowSlerp(0.3), [a, b], torch.float32).double()
    # torch adds up the squares of a row without halving it first: a million of them lose some digits.
    near = 1e-5 if x.shape[1] < PIECE else 1e-2
    torch.testing.assert_close(found, expected.flatten(), rtol=10 * near, atol=near)


def test_rows_without_an_angle_are_added_linearly() -> None:
    a, b = rows((300, 1000), 0.5)
    a[0], b[7], b[150], b[299] = 0, 0, -a[150], a[299]
    told: list[tuple[str, int]] = []
    found = summed(RowSlerp(0.25), [a, b], torch.float32, told).reshape(a.shape)
    assert told == [("zero", 2), ("near-parallel", 2)]
    torch.testing.assert_close(found[[150, 299]], 0.75 * a[[150, 299]] + 0.25 * b[[150, 299]])
    quarter = math.sin(0.25 * math.pi / 2), math.sin(0.75 * math.pi / 2)  # what has no direction is at a right angle
    torch.testing.assert_close(found[0], quarter[0] * b[0])
    torch.testing.assert_close(found[7], quarter[1] * a[7])
