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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .workers import STEP

if TYPE_CHECKING:
    from torch import Tensor

    from .sums import Run

_BLOCK = 2**14  # elements whose products are added in float32
_SAMPLE = 2**17  # elements
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

    def thin(self, most: int) -> Cut:
        """About `most` elements from all over the tensors, whole rows of them: every so manyth row."""
        step = self.numel // max(1, most) | 1  # odd: no two in the same column again and again
        return Cut(tuple(tensor[::step] for tensor in self.tensors), self.run)

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
        """Dot products of all pairs, of `_BLOCK` elements at a time in float32, their sums in float64: [k, k].

        Args:
            deltas: of the differences from the first tensor, k - 1 of them.
        """

        import torch

        def products(number: int) -> Tensor:
            flat = (self.deltas(number)[1] if deltas else self.piece(number)).flatten(1)
            total = flat.new_zeros((len(flat), len(flat)), dtype=torch.float64)
            for at in range(0, flat.shape[1], _BLOCK):
                block = flat[:, at : at + _BLOCK]
                total += block @ block.T
            return total

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
        import torch

        own = values.numpy()  # whose comparisons take a tenth of the time that torch's do
        if not self.skip or self.starts[number] >= self.skip:
            return torch.from_numpy(own >= self.value)
        if self.starts[number + 1] <= self.skip:
            return torch.from_numpy(own > self.value)
        ties = own == self.value
        late = ties.reshape(-1).cumsum().reshape(own.shape) > self.skip - self.starts[number]
        return torch.from_numpy((own > self.value) | (ties & late))


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Make the elements 0 that are not in a mask, in place, by a product: NaN stays NaN, and is found in the result."""
    import numpy as np

    own = values.numpy()
    np.multiply(own, mask.numpy(), out=own)
    return values


def marks(cut: Cut, measure: Callable[[Cut, int], Tensor], ranks: Sequence[int], *, ties: bool = True) -> list[Mark]:
    """Find ranks (0 is the smallest, below `cut.numel`), exactly: bracket each by a sample, then sort what lies inside.

    A sample's quantiles scatter by half the root of its size at most; where a bracket misses its rank all the same, it
    is widened. NaN ranks highest.

    Args:
        measure: (cut, piece) -> numbers in float32, one for each element; of `cut` itself, and of some of its rows.
        ties: False where only the values are wanted.
    """
    import torch

    thin = cut.thin(_SAMPLE)
    sample = torch.cat([measure(thin, number).reshape(-1) for number in range(thin.count)]).sort().values
    found: dict[int, Mark] = {}
    margin = 4 * math.isqrt(len(sample))
    while left := [rank for rank in dict.fromkeys(ranks) if rank not in found]:
        brackets = [_bracket(sample, rank / cut.numel, margin) for rank in left]

        def split(number: int, brackets: Sequence[tuple[float, float]] = brackets) -> list[Split]:
            values = measure(cut, number).reshape(-1)
            return [Split.of(values, *bracket) for bracket in brackets]

        for rank, bracket, *parts in zip(left, brackets, *cut.each(split), strict=True):
            mark = _mark(rank, bracket, parts, ties=ties)
            if mark is None and bracket == (-math.inf, math.inf):
                mark = Mark(math.inf, 0, ())  # there are NaN, which the result keeps, and for which it is refused
            if mark is not None:
                found[rank] = mark
        margin *= 8
    return [found[rank] for rank in ranks]


def _bracket(sample: Tensor, part: float, margin: int) -> tuple[float, float]:
    """Between which numbers of a sorted sample a quantile lies that is known to `margin` places."""
    at = int(part * len(sample))
    low = float(sample[at - margin]) if at >= margin else -math.inf
    high = float(sample[at + margin]) if at + margin < len(sample) else math.inf
    return low, math.inf if math.isnan(high) else high


class Split(NamedTuple):
    """How a piece's numbers lie to a bracket.

    Attributes:
        below, low, high: how many are smaller than its lower end, equal to that, and to the upper end.
        inside: those between its ends.
    """

    below: int
    low: int
    high: int
    inside: Tensor

    @classmethod
    def of(cls, values: Tensor, low: float, high: float) -> Split:
        import numpy as np
        import torch

        own = values.numpy()
        within = own[(own >= low) & (own <= high)]
        inside = torch.from_numpy(within[(within > low) & (within < high)])
        equal = int(np.count_nonzero(within == low))
        return cls(int(np.count_nonzero(own < low)), equal, len(within) - equal - len(inside), inside)


def _mark(rank: int, bracket: tuple[float, float], parts: Sequence[Split], *, ties: bool) -> Mark | None:
    """The element of a rank, from how all pieces lie to a bracket; None where it lies outside."""
    import torch

    low, high = bracket
    at = rank - sum(part.below for part in parts)
    lows, highs = sum(part.low for part in parts), sum(part.high for part in parts)
    inside = torch.cat([part.inside for part in parts]).sort().values
    if at < 0 or at >= lows + len(inside) + highs:
        return None
    if at < lows:
        value, skip, counts = low, at, [part.low for part in parts]
    elif at < lows + len(inside):
        value = float(inside[at - lows])
        skip = at - lows - int(torch.searchsorted(inside, value))
        counts = [int((part.inside == value).sum()) for part in parts] if skip and ties else []
    else:
        value, skip, counts = high, at - lows - len(inside), [part.high for part in parts]
    return Mark(value, skip, tuple(accumulate(counts, initial=0)) if skip and ties else ())


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

    raw = _raw(key, number, count)
    raw >>= 8
    return torch.from_numpy(raw.view(np.int32)).to(torch.float32).mul_(2**-24)


def bernoulli(key: str, number: int, count: int, probability: float) -> Tensor:
    """`uniform(key, number, count) < probability`, without making numbers of the bits: bool [count]."""
    import numpy as np
    import torch

    bound = math.ceil(float(np.float32(probability)) * 2**24) * 2**8
    return (
        torch.from_numpy(_raw(key, number, count) <= bound - 1) if bound > 0 else torch.zeros(count, dtype=torch.bool)
    )


def _raw(key: str, number: int, count: int) -> Any:
    import numpy as np

    seed = int.from_bytes(hashlib.blake2b(f"{key}/{number}".encode(), digest_size=16).digest(), "little")
    return np.random.SFC64(np.random.SeedSequence(seed)).random_raw((count + 1) // 2).view(np.uint32)[:count]
