"""Tensors of one shape cut alike into pieces, for methods that go over them more than once.

A method reads a few numbers of all pieces first (lengths, a threshold), then computes the result piece by piece. No
tensor is held whole in float32, and nothing depends on the number of threads: pieces have one size, what is drawn at
random is drawn for a piece by its place, and sums over pieces are added in order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from .workers import STEP

if TYPE_CHECKING:
    from torch import Tensor

    from .sums import Run

_HALF, _BINS = 16, 2**16  # bits of a float32 that one histogram tells apart
_T = TypeVar("_T")


@dataclass(frozen=True)
class Cut:
    """Tensors [k] of one shape as matrices of rows [rows, width].

    Attributes:
        tensors: k of them, [rows, width].
        run: who computes.
    """

    tensors: tuple[Tensor, ...]
    run: Run

    @classmethod
    def of(cls, tensors: Sequence[Tensor], run: Run, width: int = 1) -> Cut:
        """Cut tensors between rows of `width` elements; by default anywhere."""
        return cls(tuple(tensor.reshape(-1, max(1, width)) for tensor in tensors), run)

    @property
    def width(self) -> int:
        return self.tensors[0].shape[1]

    @property
    def numel(self) -> int:
        """Elements of each tensor."""
        return self.tensors[0].numel()

    @property
    def height(self) -> int:
        """Rows of a piece."""
        return max(1, STEP // self.width)

    @property
    def count(self) -> int:
        """Pieces, at least one."""
        return max(1, math.ceil(self.tensors[0].shape[0] / self.height))

    def only(self, *numbers: int) -> Cut:
        """Some of the tensors."""
        return Cut(tuple(self.tensors[number] for number in numbers), self.run)

    def piece(self, number: int) -> Tensor:
        """[k, rows, width] in float32, the caller's own."""
        import torch

        rows = [tensor[number * self.height : (number + 1) * self.height] for tensor in self.tensors]
        out = torch.empty((len(rows), *rows[0].shape))
        for own, row in zip(out, rows, strict=True):
            own.copy_(row)
        return out

    def deltas(self, number: int) -> tuple[Tensor, Tensor]:
        """The first tensor's piece, and the differences of the others from it [k - 1, rows, width]."""
        piece = self.piece(number)
        return piece[0], piece[1:].sub_(piece[0])

    def each(self, work: Callable[[int], _T]) -> Iterator[_T]:
        """work(0), work(1), ... of all pieces, in order, computed by several threads."""
        return self.run.workers.map(work, self.count)

    def write(self, work: Callable[[int], Tensor]) -> Iterator[Tensor]:
        """The same, each result rounded to the dtype of the merge: what `Sum.pieces` gives."""

        def one(number: int) -> Tensor:
            made = work(number).reshape(-1)
            return self.run.workers.result(made.numel(), self.run.dtype).copy_(made)

        return self.each(one)

    def gram(self, *, deltas: bool = False) -> Tensor:
        """Dot products of all pairs, in float64: [k, k].

        Args:
            deltas: of the differences from the first tensor, k - 1 of them.
        """

        def products(number: int) -> Tensor:
            flat = (self.deltas(number)[1] if deltas else self.piece(number)).flatten(1).double()
            return flat @ flat.T

        return _sum(self.each(products))


@dataclass(frozen=True)
class Mark:
    """Where a rank lies among numbers in ascending order, of equal ones the earlier first.

    Attributes:
        value: of the element that has the rank.
        skip: how many elements of this value have lower ranks.
        starts: elements of this value before each piece, and in all; empty where skip is 0.
    """

    value: float
    skip: int
    starts: tuple[int, ...]

    def above(self, number: int, values: Tensor) -> Tensor:
        """Which elements of a piece have this rank or a higher one: booleans as `values`."""
        if not self.skip or self.starts[number] >= self.skip:
            return values >= self.value
        if self.starts[number + 1] <= self.skip:
            return values > self.value
        ties = values == self.value
        late = ties.reshape(-1).cumsum(0).reshape(values.shape) > self.skip - self.starts[number]
        return (values > self.value) | (ties & late)


def marks(cut: Cut, measure: Callable[[int], Tensor], ranks: Sequence[int], *, ties: bool = True) -> list[Mark]:
    """Find ranks (0 is the smallest, below `cut.numel`) by two histograms of the bits of float32, exactly.

    Args:
        measure: piece -> numbers in float32, contiguous, one for each element.
        ties: False where only the values are wanted.
    """
    import torch

    def bits(number: int) -> Tensor:
        raw = measure(number).reshape(-1).view(torch.int32)
        return raw ^ ((raw >> 31) & 0x7FFFFFFF)  # integers in the order of the floats

    def high(number: int) -> Tensor:
        return torch.bincount((bits(number) >> _HALF) + _BINS // 2, minlength=_BINS)

    total = _sum(cut.each(high))
    upto = total.cumsum(0)
    bins = [int(torch.searchsorted(upto, rank, right=True)) for rank in ranks]
    wanted = sorted(set(bins))

    def low(number: int) -> Tensor:
        found = bits(number)
        top = (found >> _HALF) + _BINS // 2
        return torch.stack([torch.bincount(found[top == one] & (_BINS - 1), minlength=_BINS) for one in wanted])

    inner = dict(zip(wanted, _sum(cut.each(low)), strict=True))
    made = []
    for rank, one in zip(ranks, bins, strict=True):
        below = int(upto[one] - total[one])
        counts = inner[one]
        ends = counts.cumsum(0)
        at = int(torch.searchsorted(ends, rank - below, right=True))
        skip = rank - below - int(ends[at] - counts[at])
        code = torch.tensor([((one - _BINS // 2) << _HALF) + at], dtype=torch.int32)
        value = float((code ^ ((code >> 31) & 0x7FFFFFFF)).view(torch.float32))
        made.append(Mark(value, skip, _starts(cut, measure, value) if skip and ties else ()))
    return made


def _starts(cut: Cut, measure: Callable[[int], Tensor], value: float) -> tuple[int, ...]:
    return tuple(accumulate(cut.each(lambda number: int((measure(number) == value).sum())), initial=0))


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def uniform(key: str, number: int, count: int) -> Tensor:
    """Random numbers in [0, 1), multiples of 2**-24, float32 [count]: the same for a key and a piece, everywhere.

    The bits are those of numpy's SFC64, which NumPy promises to keep.
    """
    import numpy as np
    import torch

    seed = int.from_bytes(hashlib.blake2b(f"{key}/{number}".encode(), digest_size=16).digest(), "little")
    raw = np.random.SFC64(np.random.SeedSequence(seed)).random_raw((count + 1) // 2).view(np.uint32)[:count]
    return torch.from_numpy(raw.astype(np.uint32) >> 8).to(torch.float32).mul_(2**-24)
