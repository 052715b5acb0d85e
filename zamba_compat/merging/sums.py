"""Sums of tensors: float32 arithmetic, a piece at a time, the pieces in several threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from zamba_compat.checkpoint.dtypes import to_torch

from .workers import PIECE, STEP, Workers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PARALLEL = 0.9995  # mergekit's: two tensors with a larger cosine are added linearly
_ZERO = 1e-8  # mergekit's: a shorter tensor has no direction
_FEWEST = 16  # elements, the study's: a smaller tensor is added linearly


@dataclass(frozen=True)
class Run:
    """What a sum needs while it is computed.

    Attributes:
        workers: who computes.
        dtype: of the result.
        tell: called with "near-parallel" or "zero" where a fall-back is taken, and for how many vectors.
    """

    workers: Workers
    dtype: torch.dtype
    tell: Callable[[str, int], None]


class Sum(Protocol):
    """How tensors of one shape become one."""

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        """The result's elements in order, in one-dimensional pieces; what can be computed ahead is, from now on."""


@dataclass(frozen=True)
class Weighted:
    """sum of coefficients[i] * tensors[i]."""

    coefficients: tuple[float, ...]

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        flats = [tensor.reshape(-1) for tensor in tensors]
        count = max(1, math.ceil(flats[0].numel() / PIECE))

        def one(number: int) -> Tensor:
            parts = [flat[number * PIECE : (number + 1) * PIECE] for flat in flats]
            out = run.workers.result(parts[0].numel(), run.dtype)
            run.workers.weighted(out, parts, self.coefficients)
            return out

        yield from run.workers.map(one, count)


@dataclass(frozen=True)
class WholeSlerp:
    """sin((1 - t) w) / sin(w) * a + sin(t w) / sin(w) * b, w the angle between a and b as vectors.

    A tensor without length is at a right angle to every other, and where |cos w| > 0.9995 the weights are 1 - t and t,
    both as in mergekit.
    """

    t: float

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        a, b = (tensor.reshape(-1) for tensor in tensors)

        def products(number: int) -> tuple[float, float, float]:
            x, y = (flat[number * PIECE : (number + 1) * PIECE] for flat in (a, b))
            return run.workers.products(x, y)

        count = max(1, math.ceil(a.numel() / PIECE))
        return self._added(run.workers.start(products, count), tensors, run)

    def _added(
        self, products: Callable[[], list[tuple[float, float, float]]], tensors: Sequence[Tensor], run: Run
    ) -> Iterator[Tensor]:
        aa, ab, bb = (sum(part) for part in zip(*products(), strict=True))
        yield from Weighted(self._weights(aa, ab, bb, run.tell)).pieces(tensors, run)

    def _weights(self, aa: float, ab: float, bb: float, tell: Callable[[str, int], None]) -> tuple[float, float]:
        t, lengths = self.t, [math.sqrt(aa), math.sqrt(bb)]
        if min(lengths) <= _ZERO:
            tell("zero", 1)
        # A NaN goes through all of this, and is found in the result.
        cosine = ab / math.prod(length if length > _ZERO else 1.0 for length in lengths)
        if abs(cosine) > _PARALLEL:
            tell("near-parallel", 1)
            return 1 - t, t
        angle = math.acos(cosine)
        return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@dataclass(frozen=True)
class RowSlerp:
    """As `WholeSlerp`, each row of a matrix (what has more dimensions is flattened behind the first) for itself.

    Vectors and tensors of fewer than 16 elements are added linearly, and so are rows less than 1e-6 apart, as in the
    study's script; rows that point to opposite sides too, for which it divides by a rounding error.
    """

    t: float

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        if tensors[0].dim() < 2 or tensors[0].numel() < _FEWEST:
            yield from Weighted((1 - self.t, self.t)).pieces(tensors, run)
            return
        a, b = (tensor.reshape(tensor.shape[0], -1) for tensor in tensors)
        height = max(1, PIECE // a.shape[1])

        def one(number: int) -> tuple[Tensor, int, int]:
            x, y = (matrix[number * height : (number + 1) * height] for matrix in (a, b))
            out = run.workers.result(x.numel(), run.dtype)
            return out, *run.workers.slerped_rows(out, x, y, self.t)

        for total, zero, parallel in run.workers.map(one, math.ceil(a.shape[0] / height)):
            if zero:
                run.tell("zero", zero)
            if parallel:
                run.tell("near-parallel", parallel)
            yield total


@dataclass
class Blend:
    """A recipe's `make` and `pieces`: a sum of tensors, each of them stored or made of stored ones.

    Attributes:
        sum: how they are added.
        parts: per tensor how many sources it takes, and what makes it of them; None for a stored tensor.
        shape, dtype: of the result, the latter in the words of safetensors.
        workers: who computes.
        fallbacks: (what, for how many vectors), filled as it runs.
    """

    sum: Sum
    parts: tuple[tuple[int, Callable[..., Tensor] | None], ...]
    shape: tuple[int, ...]
    dtype: str
    workers: Workers
    fallbacks: dict[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """An estimate of what its sum holds at once, bytes: some temporary ones for each tensor of a piece."""
        return self.workers.memory + self.workers.count * 6 * len(self.parts) * 4 * STEP

    def pieces(self, *sources: Tensor) -> Iterator[Tensor]:
        """The result, flat, piece by piece; see `Sum.pieces`."""
        self.fallbacks.clear()
        return self.sum.pieces(self._tensors(sources), Run(self.workers, to_torch(self.dtype), self._tell))

    def __call__(self, *sources: Tensor) -> Tensor:
        """The result, whole."""
        import torch

        out = torch.empty(math.prod(self.shape), dtype=to_torch(self.dtype))
        at = 0
        for piece in self.pieces(*sources):
            out[at : at + piece.numel()].copy_(piece)
            at += piece.numel()
        return out.reshape(self.shape)

    def _tensors(self, sources: Sequence[Tensor]) -> list[Tensor]:
        made, at = [], 0
        for count, make in self.parts:
            own = sources[at : at + count]
            made.append(own[0] if make is None else make(*own))
            at += count
        return made

    def _tell(self, what: str, count: int) -> None:
        self.fallbacks[what] = self.fallbacks.get(what, 0) + count
