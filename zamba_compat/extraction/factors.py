"""The best approximation of a difference of two matrices by factors of a low rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zamba_compat.errors import CheckpointError
from zamba_compat.layout.copies import SLICE

if TYPE_CHECKING:
    from torch import Tensor

EXACT = 1024  # of the shorter side: up to there the whole decomposition costs little
_SURPLUS = 16  # columns more than the rank, which let the last singular vectors converge too
_TOLERANCE = 1e-4  # of what is kept: where an iteration adds less, it was the last one
_ITERATIONS = 30
_SEED = 0


@dataclass(frozen=True)
class Factors:
    """`up @ down` is the approximation.

    Attributes:
        down: [rank, in], float32.
        up: [out, rank], float32; both carry the root of each singular value.
        kept: the sum of the squares of the singular values that it holds.
        total: the sum of the squares of all of them: the square of the difference's Frobenius norm.
    """

    down: Tensor
    up: Tensor
    kept: float
    total: float


def factorize(
    base: Tensor, tuned: Tensor, rank: int, *, exact: bool | None = None, where: str | None = None
) -> Factors:
    """The matrix of a rank that is closest to tuned - base [out, in].

    That is the truncated singular value decomposition (Eckart and Young, Psychometrika 1, 1936). The singular vectors
    of the shorter side come from the Gram matrix in float64, a slice of rows at a time; where that side is long and the
    rank low, from subspace iterations on random columns with a fixed seed (Halko, Martinsson and Tropp, SIAM Review 53,
    2011), until one of them adds less than a ten-thousandth. What is kept is measured either way. Where the rank is the
    length of the shorter side, the product is the difference up to rounding.

    Args:
        base, tuned: of one shape and any floating-point dtype.
        rank: at most the length of the shorter side.
        exact: which of the two ways; None chooses.
        where: what to call the matrix in errors.

    Raises:
        CheckpointError: NaN or infinity.
    """
    difference = tuned.float()
    difference = difference.sub_(base.float()) if difference is not tuned else difference - base.float()
    total = sum(part.double().square().sum().item() for part in _rows(difference))
    if not math.isfinite(total):
        raise CheckpointError(
            "The difference holds NaN or infinity.",
            where=where,
            remedy="Look for them in both checkpoints: zamba-compat inspect CHECKPOINT --values.",
        )
    turned = difference.shape[0] < difference.shape[1]
    matrix = difference.T if turned else difference  # [long, short]
    short = matrix.shape[1]
    if exact is None:
        exact = short <= EXACT or 4 * (rank + _SURPLUS) > short
    vectors, squares = _whole(matrix, rank) if exact else _subspace(matrix, rank)
    roots = squares.sqrt().sqrt().float()
    inverse = (roots > 0) / roots.clamp(min=1e-38)
    along, across = roots[:, None] * vectors.T, (matrix @ vectors).mul_(inverse)  # [rank, short], [long, rank]
    kept = min(squares.sum().item(), total)
    if turned:
        return Factors(across.T.contiguous(), along.T.contiguous(), kept, total)
    return Factors(along.contiguous(), across, kept, total)


def memory(shape: tuple[int, ...], rank: int) -> int:
    """An estimate of what `factorize` holds at once, bytes."""
    long, short = max(shape), min(shape)
    width = rank + _SURPLUS
    inner = 4 * 8 * short**2 if short <= EXACT or 4 * width > short else 4 * 4 * width * (long + short)
    return 4 * long * short * 2 + inner + 4 * 2 * rank * (long + short)


def _rows(matrix: Tensor) -> Iterator[Tensor]:
    height = max(1, SLICE // matrix.shape[1])
    for start in range(0, len(matrix), height):
        yield matrix[start : start + height]


def _whole(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The right singular vectors [short, rank] in float32, and the squares of their singular values in float64."""
    import torch

    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for part in _rows(matrix):
        wide = part.double()
        gram.addmm_(wide.T, wide)
    squares, vectors = torch.linalg.eigh(gram)  # in ascending order
    return vectors[:, -rank:].flip(1).float(), squares[-rank:].flip(0).clamp(min=0)


def _subspace(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """As `_whole`, by iterations; what is kept grows with each of them."""
    import torch

    width = min(rank + _SURPLUS, matrix.shape[1])
    generator = torch.Generator().manual_seed(_SEED)
    image = matrix @ torch.randn(matrix.shape[1], width, generator=generator)
    kept = 0.0
    for _ in range(_ITERATIONS):
        columns = torch.linalg.qr(matrix.T @ torch.linalg.qr(image).Q).Q
        image = matrix @ columns
        wide = image.double()
        squares, turn = torch.linalg.eigh(wide.T @ wide)
        squares, before = squares[-rank:].flip(0).clamp(min=0), kept
        kept = squares.sum().item()
        if kept - before <= _TOLERANCE * kept:
            break
    return columns @ turn[:, -rank:].flip(1).float(), squares
