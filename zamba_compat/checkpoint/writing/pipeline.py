"""Bytes on their way into a file, hashed and searched for NaN beside it in other threads."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.dtypes import BUFFER, all_finite, in_chunks
from zamba_compat.checkpoint.reading.files import open_regular, unreadable, write_all
from zamba_compat.checkpoint.reading.stored import StoredBytes
from zamba_compat.errors import CheckpointError

if TYPE_CHECKING:
    pass


STEP = 2**24  # bytes copied at once
AHEAD = 2**28  # bytes that are copied and not examined yet: the examiners shall find them in the page cache
EXAMINERS = 2
QUEUED = 8  # pieces of computed tensors that are written and not examined yet
WORKING_MEMORY = (1 + EXAMINERS) * BUFFER + 2**25  # bytes of anonymous memory, tensors that are computed not counted
_FLUSH = 2**25  # bytes between two calls that send what is written on its way to the disk
_TRIM = 2**24  # bytes of tensors in memory between two calls that give freed memory back
_ADVISE = getattr(os, "posix_fadvise", None)
# This kernel or this pair of file systems does not copy from file to file; or, last, one of the disks fails: reading
# and writing apart will tell which.
_MISSING = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EBADF)
_NO_COPY = (*_MISSING, errno.EIO)


@dataclass
class Examined:
    """What one tensor's bytes were, complete after `Pipeline.drain`. Attributes: sha256; whether all are finite."""

    dtype: str
    sha256: Any = field(default_factory=hashlib.sha256)
    is_finite: bool = True

    def take(self, chunk: memoryview) -> None:
        """The next bytes, a whole number of elements."""
        self.sha256.update(chunk)
        self.is_finite = self.is_finite and all_finite(chunk, self.dtype)


class Pipeline:
    """Writes tensors one after another; use it as a context manager.

    The caller's thread writes while others examine the same bytes. Stored tensors go from file to file inside the
    kernel, where it can, and are read a second time to be examined: what keeps the two alike is that the source does
    not change, see `Checkpoint.verify_unchanged`.
    """

    def __init__(self, progress: Callable[[int], object] | None = None) -> None:
        """`progress` is called with the number of bytes after each piece that is written."""
        self._progress = progress
        self._threads = ThreadPoolExecutor(EXAMINERS, "examine")
        self._flusher = ThreadPoolExecutor(1, "flush")
        self._flushes: deque[Future[object]] = deque()
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._buffers = threading.local()
        self._source: tuple[os.PathLike[str], int] | None = None
        self._passed = 0  # bytes of tensors in memory since freed memory was given back
        self._unflushed: tuple[int, int] | None = None  # a descriptor, and from where on
        self._room = threading.Semaphore(QUEUED)
        self._streamed: queue.Queue[memoryview | None] | None = None  # what an examiner waits for the end of

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._streamed is not None:
            self._streamed.put(None)  # a signal can come between any two steps of `stream`
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._flusher.shutdown(wait=True, cancel_futures=True)
        if self._source is not None:
            os.close(self._source[1])

    def copy(self, target: int, source: StoredBytes, examined: Examined) -> None:
        """Append a stored tensor to the open file `target`.

        Raises:
            CheckpointError: the source cannot be read, or has become shorter.
        """
        self._submit(source.nbytes, self._examine_stored, source, examined)
        fd = self._open(source)
        at, end = source.offset, source.offset + source.nbytes
        while at < end:
            count = _copy_range(fd, target, at, min(STEP, end - at))
            if not count:
                for chunk in _read(fd, source, at, self._buffer()):
                    write_all(target, chunk)
                    self._written(target, len(chunk))
                return
            at += count
            self._written(target, count)

    def append(self, target: int, data: memoryview, examined: Examined) -> None:
        """Append bytes in memory to the open file `target`; they must not change before `drain`."""
        self._submit(len(data), _examine, data, examined)
        self._passed += len(data)
        for chunk in in_chunks(data, STEP):
            write_all(target, chunk)
            self._written(target, len(chunk))

    def stream(self, target: int, pieces: Iterable[memoryview], examined: Examined) -> int:
        """Append a tensor that comes in pieces of whole elements to the open file `target`.

        At most `QUEUED` pieces wait to be examined, those of the tensors before counted; each must not change before
        that.

        Returns:
            how many bytes it was.
        """
        waiting = self._streamed = queue.Queue()
        self._submit(0, _examine_queue, waiting, examined, self._room)
        total = 0
        try:
            for data in pieces:
                self._room.acquire()
                waiting.put(data)
                write_all(target, data)
                self._written(target, len(data))
                total += len(data)
        finally:
            waiting.put(None)
        self._streamed = None
        return total

    def leave(self) -> None:
        """Call it before an open file that was written to is closed."""
        while self._flushes:
            self._flushes.popleft().result()
        self._unflushed = None

    def drain(self) -> None:
        """Wait until everything that was written has been examined."""
        while self._waiting:
            self._waiting.popleft()[0].result()
        if self._passed >= _TRIM:
            self._passed = 0
            _give_back_memory()

    def _submit(self, nbytes: int, work: Callable[..., None], *arguments: object) -> None:
        while self._waiting and sum(size for _, size in self._waiting) + nbytes > AHEAD:
            self._waiting.popleft()[0].result()
        self._waiting.append((self._threads.submit(work, *arguments), nbytes))

    def _written(self, target: int, count: int) -> None:
        if _ADVISE is not None:
            # Without it all pages would wait for the fsync at the end of the file.
            end = os.lseek(target, 0, os.SEEK_CUR)
            if self._unflushed is None or self._unflushed[0] != target or self._unflushed[1] > end:
                self._unflushed = (target, end - count)
            start = self._unflushed[1]
            if end - start >= _FLUSH:
                # Beside the writer: it waits where the disk has as much to do as it takes.
                self._flushes.append(self._flusher.submit(_ADVISE, target, start, end - start, os.POSIX_FADV_DONTNEED))
                self._unflushed = (target, end)
        if self._progress is not None:
            self._progress(count)

    def _examine_stored(self, source: StoredBytes, examined: Examined) -> None:
        # A descriptor of its own: the kernel reads ahead for each descriptor, and the writer's is elsewhere.
        fd = open_regular(source.path, where=str(source.path))
        try:
            for chunk in _read(fd, source, source.offset, self._buffer()):
                examined.take(chunk)
        finally:
            os.close(fd)

    def _buffer(self) -> memoryview:
        if not hasattr(self._buffers, "own"):
            self._buffers.own = memoryview(bytearray(BUFFER))
        own: memoryview = self._buffers.own
        return own

    def _open(self, source: StoredBytes) -> int:
        if self._source is None or self._source[0] != source.path:
            fd = open_regular(source.path, where=str(source.path))
            if self._source is not None:
                os.close(self._source[1])
            self._source = (source.path, fd)
            if _ADVISE is not None:
                _ADVISE(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._source[1]


def _give_back_memory() -> None:
    """Return freed memory to the system.

    glibc does not fill the gap that an aligned block of some megabytes leaves with the next block of that size, so
    without this the heap grows by nearly every tensor that is computed.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _examine(data: memoryview, examined: Examined) -> None:
    for chunk in in_chunks(data):
        examined.take(chunk)


def _examine_queue(waiting: queue.Queue[memoryview | None], examined: Examined, room: threading.Semaphore) -> None:
    """Until None comes, whatever happens: who fills the queue must not wait for room for ever."""
    failure: BaseException | None = None
    while (data := waiting.get()) is not None:
        try:
            if failure is None:
                _examine(data, examined)
        except BaseException as error:
            failure = error
        del data
        room.release()
    if failure is not None:
        raise failure


def _copy_range(source: int, target: int, offset: int, count: int) -> int:
    """Copy inside the kernel; returns how many bytes, and 0 where it cannot or the source has ended."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, offset)
    except OSError as error:
        if error.errno in _NO_COPY:
            return 0
        raise


def _read(fd: int, source: StoredBytes, at: int, buffer: memoryview) -> Iterator[memoryview]:
    """The stored bytes from `at` on, in pieces that fill `buffer`; each is overwritten by the next."""
    end = source.offset + source.nbytes
    while at < end:
        chunk = buffer[: min(len(buffer), end - at)]
        _fill(fd, chunk, at, source)
        yield chunk
        at += len(chunk)


def _fill(fd: int, chunk: memoryview, offset: int, source: StoredBytes) -> None:
    done = 0
    try:
        while done < len(chunk):
            count = _read_into(fd, chunk[done:], offset + done)
            if not count:
                break
            done += count
    except OSError as error:
        raise unreadable(error, str(source.path)) from error
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
