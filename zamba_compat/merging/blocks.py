"""The inner loops of sums: a block at a time, all of its steps while it is in the processor's own cache.

A block is ten operations of microseconds, and each of them gives Python's lock away and asks for it again, against the
other threads of a merge. TorchScript runs such a loop as one call without the lock, and computes the same: the SLERP of
two checkpoints takes half as long. torch calls it deprecated, without an heir that needs no compiler; where it is gone,
or cannot read this file, Python runs the loops.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

BLOCK = 2**17  # elements in float32 at once: three of these stay in a processor's own cache, for every operation


def memory(size: int = BLOCK) -> list[Tensor]:
    """What one thread lends to the loops: new memory costs more than sums."""
    return [torch.empty(size) for _ in range(3)]


def weighted(out: Tensor, parts: list[Tensor], coefficients: list[float], memory: list[Tensor]) -> None:
    """sum of coefficients[i] * parts[i] into `out`: flat, of one size, any floats; rounded once, from float32."""
    size = memory[0].numel()
    for at in range(0, out.numel(), size):
        end = min(out.numel(), at + size)
        total = memory[0][: end - at].copy_(parts[0][at:end]).mul_(coefficients[0])
        for i in range(1, len(parts)):
            total.add_(memory[1][: end - at].copy_(parts[i][at:end]), alpha=coefficients[i])
        out[at:end].copy_(total)


def products(a: Tensor, b: Tensor, memory: list[Tensor]) -> tuple[float, float, float]:
    """Dot products a a, a b and b b of flat tensors of one size: each block's in float32, their sum in float64."""
    aa, ab, bb = 0.0, 0.0, 0.0
    size = memory[0].numel()
    for at in range(0, a.numel(), size):
        end = min(a.numel(), at + size)
        x, y = memory[0][: end - at].copy_(a[at:end]), memory[1][: end - at].copy_(b[at:end])
        aa += float(torch.dot(x, x))
        ab += float(torch.dot(x, y))
        bb += float(torch.dot(y, y))
    return aa, ab, bb


def slerped_rows(out: Tensor, a: Tensor, b: Tensor, t: float, memory: list[Tensor]) -> tuple[int, int]:
    """Each row of `a` to that of `b`, both [rows, width], into the flat `out`; see `sums.RowSlerp`.

    Args:
        memory: each of them has room for a row at least.

    Returns:
        of how many rows one has no direction, and how many were added linearly.
    """
    zero = 1e-12  # torch.nn.functional.normalize's
    parallel = 1e-6  # radians, the study's
    opposite = math.pi - 1e-6  # a sine beyond it is a rounding error
    rows, width = a.shape
    step = memory[0].numel() // width
    lengths, others, dots = torch.empty(rows), torch.empty(rows), torch.empty(rows)
    for at in range(0, rows, step):
        end = min(rows, at + step)
        x, y, product = [one[: (end - at) * width].view(end - at, width) for one in memory]
        x.copy_(a[at:end])
        y.copy_(b[at:end])
        lengths[at:end] = torch.linalg.vector_norm(x, dim=1)
        others[at:end] = torch.linalg.vector_norm(y, dim=1)
        dots[at:end] = torch.mul(x, y, out=product).sum(1)
    # For all rows at once: there are a dozen steps, of a few numbers each.
    scale = lengths.double().clamp(min=zero) * others.double().clamp(min=zero)
    angle = torch.acos((dots.double() / scale).clamp(-1.0, 1.0))
    linear = (angle < parallel) | (angle > opposite)
    sine = torch.where(linear, 1.0, torch.sin(angle))
    first = torch.where(linear, 1.0 - t, torch.sin((1.0 - t) * angle) / sine).float().unsqueeze(1)
    second = torch.where(linear, t, torch.sin(t * angle) / sine).float().unsqueeze(1)
    for at in range(0, rows, step):
        end = min(rows, at + step)
        x, y = [one[: (end - at) * width].view(end - at, width) for one in memory[:2]]
        x.copy_(a[at:end]).mul_(first[at:end])
        x.addcmul_(y.copy_(b[at:end]), second[at:end])
        out[at * width : end * width].copy_(x.view(-1))
    return int(((lengths <= zero) | (others <= zero)).sum()), int(linear.sum())


@cache
def without_lock(loop: Callable[..., Any]) -> Callable[..., Any]:
    """The same loop in TorchScript; the loop itself where that cannot be had."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled: Callable[..., Any] = torch.jit.script(loop)
    except Exception:  # whatever a release that is to come says instead
        return loop
    return compiled
