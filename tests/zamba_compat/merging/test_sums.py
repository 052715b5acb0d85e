"""Sums are the same whichever way a tensor is cut: pieces for the threads, blocks within them."""

from __future__ import annotations

import math

import pytest
import torch

from zamba_compat.merging.sums import Run, Sum, Weighted, WholeSlerp
from zamba_compat.merging.workers import PIECE, Workers

SIZES = [0, 1, 5, 2**17 - 1, 2**17, 2**17 + 1, PIECE, PIECE + 1, 2 * PIECE + 2**17 + 3]


def summed(what: Sum, tensors: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    with Workers() as workers:
        pieces = what.pieces(tensors, Run(workers, dtype, lambda *_: None))
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
