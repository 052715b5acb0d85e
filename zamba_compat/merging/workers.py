"""The threads that compute a merge, and the memory they lend and use again."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from zamba_compat.cpu.native import kernels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 2**20  # elements that one thread computes before it is asked for more; smaller ones cost more switches
# Elements of a piece of a method that has many steps: a few of these in float32 stay in a cache. What is drawn at
# random depends on it.
STEP = 2**18
_MOST = 8  # threads
_AHEAD = 4  # results per thread that are computed before they are asked for
_T = TypeVar("_T")


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

        from . import blocks

        # Here and not where they are used first: warnings are silenced for the whole process while they are compiled.
        loops = blocks.weighted, blocks.products, blocks.slerped_rows
        self._weighted, self._products, self._slerped_rows = map(blocks.without_lock, loops)
        self._memory, self._kernels = blocks.memory, kernels()
        started = threading.Barrier(self.count)

        def alone(_: int) -> None:
            torch.get_num_threads()  # what a thread reads first would set it to the process's number again
            torch.set_num_threads(1)
            started.wait()  # a thread that is not there yet takes none of these

        own = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(self.count, "sum")
        try:
            list(self._threads.map(alone, range(self.count)))
        except BaseException:
            started.abort()  # or those that are there would wait for ever for one that cannot start
            self._threads.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(own)  # for the whole process too, not for this thread alone
        return self

    def __exit__(self, *exc: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def weighted(self, out: Tensor, parts: list[Tensor], coefficients: Sequence[float]) -> None:
        """See `blocks.weighted`."""
        if self._kernels and len(parts) == 2 and self._kernels.fit(out, *parts):
            self._kernels.add(out, parts[0], parts[1], coefficients[0], coefficients[1])
            return
        self._weighted(out, parts, list(coefficients), self._lent())

    def products(self, a: Tensor, b: Tensor) -> tuple[float, float, float]:
        """See `blocks.products`."""
        if self._kernels and self._kernels.fit(a, b):
            return self._kernels.multiply(a, b)
        found: tuple[float, float, float] = self._products(a, b, self._lent())
        return found

    def slerped_rows(self, out: Tensor, a: Tensor, b: Tensor, t: float) -> tuple[int, int]:
        """See `blocks.slerped_rows`."""
        if self._kernels and self._kernels.fit(out, a, b):
            return self._kernels.slerp_rows(out, a, b, t)
        own = self._lent()
        found: tuple[int, int] = self._slerped_rows(
            out, a, b, t, own if a.shape[1] <= own[0].numel() else self._memory(a.shape[1])
        )
        return found

    def _lent(self) -> list[Tensor]:
        if not hasattr(self._own, "blocks"):
            self._own.blocks = self._memory()
        own: list[Tensor] = self._own.blocks
        return own

    def result(self, count: int, dtype: torch.dtype) -> Tensor:
        """Elements to be written; up to PIECE of them are in memory that is used again when nothing refers to them."""
        import numpy as np
        import torch

        if count > PIECE:
            return torch.empty(count, dtype=dtype)
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
        """An estimate of what they hold at once, bytes: blocks, less than a piece each, and results of two tensors."""
        return self.count * (1 + 2 * _AHEAD) * 4 * PIECE

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
