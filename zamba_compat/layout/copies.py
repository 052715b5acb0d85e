"""Copies of one tensor: compared and combined a slice at a time, so that mapped files stay mapped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SLICE = 1 << 20  # elements: 8 MB in float64


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape are equal bit for bit; NaN equals the same NaN."""
    import torch

    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def relative_distance(a: Tensor, b: Tensor) -> float:
    """||b - a|| / ||a|| (Frobenius norms), infinite for a zero `a` and another `b`; nan where either has one."""
    return ratio(*squares(a, b))


def squares(a: Tensor, b: Tensor) -> tuple[float, float]:
    """||b - a||^2 and ||a||^2, in float64."""
    apart = scale = 0.0
    for x, y in slices(a, b):
        apart += (y - x).square().sum().item()
        scale += x.square().sum().item()
    return apart, scale


def ratio(apart: float, scale: float) -> float:
    """The relative distance of what `squares` found, or of its sums over several tensors."""
    if scale == 0:
        return apart if math.isnan(apart) else math.inf if apart else 0.0
    return float((apart / scale) ** 0.5)


def norm(tensor: Tensor) -> float:
    """The Frobenius norm, in float64."""
    return float(sum(part.square().sum().item() for (part,) in slices(tensor)) ** 0.5)


def combine(copies: Sequence[Tensor], weights: Sequence[float], divisor: float = 1.0) -> Tensor:
    """sum_i weights[i] * copies[i] / divisor, summed in float64, then rounded to the copies' dtype."""
    import torch

    out = torch.empty(copies[0].shape, dtype=copies[0].dtype)
    flat, start = out.view(-1), 0
    for parts in slices(*copies):
        total = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total += part * weight
        flat[start : start + total.numel()] = total / divisor
        start += total.numel()
    return out


def mean(copies: Sequence[Tensor]) -> Tensor:
    """The arithmetic mean, in the dtype of the copies."""
    return combine(copies, [1.0] * len(copies), len(copies))


def inner_products(copies: Sequence[Tensor]) -> Tensor:
    """[n, n], float64: <copies[i], copies[j]> of the flattened tensors."""
    import torch

    total = torch.zeros(len(copies), len(copies), dtype=torch.float64)
    for parts in slices(*copies):
        rows = torch.stack(parts)
        total += rows @ rows.T
    return total


def slices(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The same elements of every tensor, flattened, in float64; tensors of one shape."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), SLICE):
        yield [tensor[start : start + SLICE].double() for tensor in flat]
