"""Fit a position's low-rank adapter to what its weight loses when it is tied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zamba_compat.layout.copies import SLICE

if TYPE_CHECKING:
    from torch import Tensor


def fit_adapter(tied: Tensor, own: Tensor, down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The adapter with which `tied` comes closest to `own` with its adapter, for any input.

    A position computes (W + U D) x with the shared weight W, adapter_list.p.0 = D and adapter_list.p.1 = U. With T for
    W after tying, the best U' D' of a rank is the truncated singular value decomposition of W + U D - T (Eckart and
    Young, Psychometrika 1, 1936). The right singular vectors come from the Gram matrix in float64, a slice of rows at a
    time, so that the difference is never held whole.

    Args:
        tied: [out, in], the shared weight after tying, as it will be stored.
        own: [out, in], the position's weight before.
        down: [r, in], the first half of the position's adapter.
        up: [out, r], the second half.
        rank: of the new adapter.

    Returns:
        down' [rank, in] and up' [out, rank] in the adapter's dtype, and the Frobenius norm of what is left,
        ||own + up down - tied - up' down'|| with the rounded factors.
    """
    import torch

    columns = own.shape[1]
    rows = max(1, SLICE // columns)
    before = down.double()

    def differences(start: int) -> Tensor:
        part = slice(start, start + rows)
        moved = own[part].double() - tied[part].double()
        return torch.addmm(moved, up[part].double(), before)

    gram = torch.zeros(columns, columns, dtype=torch.float64)
    for start in range(0, own.shape[0], rows):
        difference = differences(start)
        gram.addmm_(difference.T, difference)
    squares, vectors = torch.linalg.eigh(gram)  # in ascending order
    kept = min(rank, columns, own.shape[0])
    squares, vectors = squares[-kept:].flip(0), vectors[:, -kept:].flip(1)
    # Each half takes the root of the singular value, as evenly scaled as a float format likes it.
    roots = squares.clamp(min=0).sqrt().sqrt()
    new_down = torch.zeros(rank, columns, dtype=down.dtype)
    new_down[:kept] = (roots[:, None] * vectors.T).to(down.dtype)
    new_up = torch.zeros(own.shape[0], rank, dtype=up.dtype)
    inverse = torch.where(roots > 0, 1 / roots, 0.0)
    left, after = 0.0, new_down.double()
    for start in range(0, own.shape[0], rows):
        difference = differences(start)
        part = new_up[start : start + rows]
        part[:, :kept] = ((difference @ vectors) * inverse).to(up.dtype)
        left += torch.addmm(difference, part.double(), after, alpha=-1).square().sum().item()
    return new_down, new_up, float(left**0.5)


def pad(half: Tensor, number: int, rank: int) -> Tensor:
    """An adapter's half (0: [r, in], 1: [out, r]) with zeros up to a rank; their product stays the same."""
    import torch

    shape = (rank, half.shape[1]) if number == 0 else (half.shape[0], rank)
    out = torch.zeros(shape, dtype=half.dtype)
    out[: half.shape[0], : half.shape[1]] = half
    return out
