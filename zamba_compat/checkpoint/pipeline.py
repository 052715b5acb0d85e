"""Bytes on their way into a file, hashed and searched for NaN in a second thread."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from zamba_compat.errors import CheckpointError

from .dtypes import INFINITY_BITS, SIZES
from .files import open_regular, write_all
from .stored import StoredBytes

CHUNK = 2**21  # bytes; what is read is still in the processor's cache when it is hashed and written
BUFFERS = 8
_ADVISE = getattr(os, "posix_fadvise", None)


@dataclass
class Examined:
    """What one tensor's bytes were, complete when the pipeline says so. Attributes: sha256; whether all are finite."""

    dtype: str
    sha256: Any = field(default_factory=hashlib.sha256)
    is_finite: bool = True

    def take(self, chunk: memoryview) -> None:
        """The next bytes, a whole number of elements."""
        self.sha256.update(chunk)
        self.is_finite = self.is_finite and all_finite(chunk, self.dtype)


class Pipeline:
    """Writes tensors one after another; use it as a context manager.

    The caller's thread reads and writes while the other one examines the same bytes. At most BUFFERS chunks of CHUNK
    bytes wait between them, so memory does not grow with the tensors.
    """

    def __init__(self, progress: Callable[[int], object] | None = None) -> None:
        self._progress = progress
        self._thread = ThreadPoolExecutor(1, "examine")
        self._waiting: deque[Future[None]] = deque()
        self._buffers = [memoryview(mmap.mmap(-1, CHUNK)) for _ in range(BUFFERS)]
        self._turn = 0
        self._sources: dict[os.PathLike[str], int] = {}

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        for fd in self._sources.values():
            os.close(fd)
        self._sources.clear()

    def copy(self, target: int, source: StoredBytes, examined: Examined) -> None:
        """Append a stored tensor to the open file `target`.

        Raises:
            CheckpointError: the source cannot be read, or has become shorter.
        """
        fd = self._open(source)
        at, end = source.offset, source.offset + source.nbytes
        while at < end:
            chunk = self._free_buffer()[: min(CHUNK, end - at)]
            _fill(fd, chunk, at, source)
            self._pass_on(target, chunk, examined)
            at += len(chunk)

    def append(self, target: int, data: memoryview, examined: Examined) -> None:
        """Append bytes in memory to the open file `target`; they must not change before `drain`."""
        for at in range(0, len(data), CHUNK):
            self._wait_for_room()
            self._pass_on(target, data[at : at + CHUNK], examined)

    def drain(self) -> None:
        """Wait until everything that was passed on has been examined."""
        while self._waiting:
            self._waiting.popleft().result()

    def _pass_on(self, target: int, chunk: memoryview, examined: Examined) -> None:
        self._waiting.append(self._thread.submit(examined.take, chunk))
        write_all(target, chunk)
        if _ADVISE is not None:
            # Sends the pages on their way to the disk; without it they would all wait for the fsync.
            _ADVISE(target, os.lseek(target, 0, os.SEEK_CUR) - len(chunk), len(chunk), os.POSIX_FADV_DONTNEED)
        if self._progress is not None:
            self._progress(len(chunk))

    def _wait_for_room(self) -> None:
        while len(self._waiting) >= BUFFERS - 1:
            self._waiting.popleft().result()

    def _free_buffer(self) -> memoryview:
        self._wait_for_room()
        self._turn = (self._turn + 1) % BUFFERS
        return self._buffers[self._turn]

    def _open(self, source: StoredBytes) -> int:
        if source.path not in self._sources:
            fd = open_regular(source.path, where=str(source.path))
            self._sources[source.path] = fd
            if _ADVISE is not None:
                _ADVISE(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._sources[source.path]


def all_finite(chunk: memoryview, dtype: str) -> bool:
    """Whether none of the elements (little-endian) is NaN or infinite; True for integers and booleans.

    Read as integers of their size, the elements that are not finite are the largest positive and the largest unsigned
    ones, so two maxima decide it without a temporary array.
    """
    limit = INFINITY_BITS.get(dtype)
    if limit is None:
        return True
    import numpy as np

    size = SIZES[dtype]
    elements = np.frombuffer(chunk, f"<i{size}")
    sign = 1 << (8 * size - 1)
    return bool(elements.max() < limit and elements.view(f"<u{size}").max() < sign + limit)


def _fill(fd: int, chunk: memoryview, offset: int, source: StoredBytes) -> None:
    done = 0
    try:
        while done < len(chunk):
            count = _read_into(fd, chunk[done:], offset + done)
            if not count:
                break
            done += count
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"Reading failed: {reason}.", where=str(source.path), remedy="Check the disk.") from error
    if done < len(chunk):
        raise CheckpointError(
            "The file became shorter while it was read.",
            where=str(source.path),
            remedy="Run it again when nothing writes there.",
        )


def _read_into(fd: int, chunk: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [chunk], offset)
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, len(chunk))
    chunk[: len(data)] = data
    return len(data)
