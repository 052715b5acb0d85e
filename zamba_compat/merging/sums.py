"""Sums of tensors: float32 arithmetic, a piece at a time, the pieces in several threads."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zamba_compat.checkpoint.dtypes import to_torch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 2**20  # elements that one thread computes before it is asked for more; smaller ones cost more switches
_MOST = 8  # threads
_AHEAD = 4  # results per thread that are computed before they are asked for
_T = TypeVar("_T")
_PARALLEL = 0.9995  # mergekit's: two tensors with a larger cosine are added linearly
_ZERO = 1e-8  # mergekit's: a shorter tensor has no direction
_ROW_ZERO = 1e-12  # torch.nn.functional.normalize's
_ROW_PARALLEL = 1e-6  # radians, the study's
_ROW_OPPOSITE = 1e-6  # radians short of a half turn: where its sines are rounding errors
_FEWEST = 16  # elements, the study's: a smaller tensor is added linearly


class Workers:
    """Threads that each compute one piece at a time; use it as a context manager.

    torch's own threads stay out of it: on pieces of this size they spend more time meeting than computing.
    """

    def __init__(self) -> None:
        self.count = min(
            _MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self._own = threading.local()
        self._free: deque[Any] = deque()

    def __enter__(self) -> Workers:
        import torch

        own = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(self.count, "sum", initializer=partial(torch.set_num_threads, 1))
        list(self._threads.map(lambda _: None, range(self.count)))
        torch.set_num_threads(own)
        return self

    def __exit__(self, *exc: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def weighted(self, out: Tensor, parts: list[Tensor], coefficients: Sequence[float]) -> None:
        """See `blocks.weighted`."""
        from . import blocks

        blocks.without_lock(blocks.weighted)(out, parts, list(coefficients), self._lent())

    def products(self, a: Tensor, b: Tensor) -> tuple[float, float, float]:
        """See `blocks.products`."""
        from . import blocks

        found: tuple[float, float, float] = blocks.without_lock(blocks.products)(a, b, self._lent())
        return found

    def _lent(self) -> list[Tensor]:
        from . import blocks

        if not hasattr(self._own, "blocks"):
            self._own.blocks = blocks.memory()
        own: list[Tensor] = self._own.blocks
        return own

    def result(self, count: int, dtype: torch.dtype) -> Tensor:
        """At most PIECE elements to be written, in memory that is used again when nothing refers to them."""
        import numpy as np
        import torch

        nbytes = count * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(PIECE * 8, np.uint8)  # pages that no result has needed take no memory
        own = memory[:nbytes]  # every view of the tensor keeps this one alive
        weakref.finalize(own, self._free.append, memory).atexit = False
        return torch.from_numpy(own).view(dtype)

    @property
    def memory(self) -> int:
        """An estimate of what they hold at once, bytes: three pieces in float32 each, and results ahead."""
        return self.count * (3 + _AHEAD) * 4 * PIECE

    def start(self, work: Callable[[int], _T], count: int) -> Callable[[], list[_T]]:
        """Begin work(0), work(1), ...; what is returned waits for all of it."""
        begun = [self._threads.submit(work, number) for number in range(count)]
        return lambda: [one.result() for one in begun]

    def map(self, work: Callable[[int], _T], count: int) -> Iterator[_T]:
        """work(0), work(1), ... in this order; a few are computed ahead of the one that is taken."""
        waiting: deque[Future[_T]] = deque()
        try:
            for number in range(count):
                waiting.append(self._threads.submit(work, number))
                if len(waiting) > _AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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
            total, zero, parallel = self._rows(_float(x), y.float())
            return total.reshape(-1).to(run.dtype), zero, parallel

        for total, zero, parallel in run.workers.map(one, math.ceil(a.shape[0] / height)):
            if zero:
                run.tell("zero", zero)
            if parallel:
                run.tell("near-parallel", parallel)
            yield total

    def _rows(self, x: Tensor, y: Tensor) -> tuple[Tensor, int, int]:
        import torch

        t = self.t
        lengths = [torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).double() for rows in (x, y)]
        products = (x * y).sum(1).double()
        cosine = (products / math.prod(length.clamp(min=_ROW_ZERO) for length in lengths)).clamp(-1, 1)
        angle = torch.acos(cosine)
        linear = (angle < _ROW_PARALLEL) | (angle > math.pi - _ROW_OPPOSITE)
        sine = torch.where(linear, 1.0, torch.sin(angle))
        first = torch.where(linear, 1 - t, torch.sin((1 - t) * angle) / sine)
        second = torch.where(linear, t, torch.sin(t * angle) / sine)
        total = x.mul_(first.float()[:, None]).addcmul_(y, second.float()[:, None])
        zero = (lengths[0] <= _ROW_ZERO) | (lengths[1] <= _ROW_ZERO)
        return total, int(zero.sum()), int(linear.sum())


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


def _float(piece: Tensor) -> Tensor:
    """A copy in float32, to be changed in place."""
    import torch

    return piece.to(torch.float32, copy=True)
