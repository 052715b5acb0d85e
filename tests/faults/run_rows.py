"""Rows 48 to 57 and 59: destinations that will not do, and what happens to the machine while a command runs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from faults.arena import SHARDS, Arena
from faults.commands import WRITING
from zamba_compat.checkpoint.writing.staging import Staging

# What every writing command calls to change the file system, and to read.
WRITES = ("write", "copy_file_range", "fsync", "mkdir", "rename", "unlink", "rmdir")
READS = ("read", "preadv", "copy_file_range")


def all_arguments(arena: Arena, *words: str) -> None:
    for command in WRITING:
        arena.arguments.setdefault(command, []).extend(words)


@contextlib.contextmanager
def at_call(names: tuple[str, ...], number: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something before the `number`th call (from 1) of any of these functions of os, once."""
    with _counting(names, lambda count: action() if count == number else None):
        yield


@contextlib.contextmanager
def failing_from(names: tuple[str, ...], number: int, code: int) -> Iterator[None]:
    """From the `number`th call on, these functions of os raise OSError(code), as a full disk does."""

    def fail(count: int) -> None:
        if count >= number:
            raise OSError(code, os.strerror(code))

    with _counting(names, fail):
        yield


@contextlib.contextmanager
def _counting(names: tuple[str, ...], before: Callable[[int], object]) -> Iterator[None]:
    """Call `before` with the number of the call (from 1) before each call of these functions of os."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            before(count)
            return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name in names:
            if hasattr(os, name):
                stack.enter_context(mock.patch.object(os, name, counted(getattr(os, name))))
        yield


def occupied(arena: Arena) -> None:
    shutil.copytree(arena.other, arena.destination)


def occupied_and_overwrite(arena: Arena) -> None:
    arena.destination.mkdir()
    (arena.destination / "notes.txt").write_text("old")
    all_arguments(arena, "--overwrite")


def is_the_source(arena: Arena) -> None:
    arena.destination.symlink_to(arena.source)
    all_arguments(arena, "--overwrite")


def inside_the_source(arena: Arena) -> None:
    arena.destination.symlink_to(arena.source / "made")


def contains_the_source(arena: Arena) -> None:
    inner = arena.top / "made" / "inner"
    inner.parent.mkdir()
    arena.source.rename(inner)
    arena.source.symlink_to(inner)
    all_arguments(arena, "--overwrite")


def read_only(arena: Arena) -> None:
    """The directory of the destination refuses new names, before any tensor is read."""

    def no_tensor(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tensor was read")

    @contextlib.contextmanager
    def during() -> Iterator[None]:
        with (
            failing_from(("mkdir",), 1, errno.EROFS),
            mock.patch("zamba_compat.checkpoint.reading.stored.Checkpoint.read", no_tensor),
            mock.patch("zamba_compat.checkpoint.writing.pipeline.Pipeline.copy", no_tensor),
        ):
            yield

    arena.during = during


def little_room(arena: Arena) -> None:
    usage = shutil.disk_usage(arena.top)._replace(free=1000)
    arena.during = lambda: mock.patch("shutil.disk_usage", lambda path: usage)


def full_disk(arena: Arena) -> None:
    arena.during = lambda: failing_from(("write", "copy_file_range"), 20, errno.ENOSPC)


def full_disk_over_old(arena: Arena) -> None:
    occupied(arena)
    all_arguments(arena, "--overwrite")
    full_disk(arena)


def _signal(number: int, after: int) -> Callable[[Arena], None]:
    def make(arena: Arena) -> None:
        arena.during = lambda: at_call(WRITES, after, lambda: os.kill(os.getpid(), number))

    return make


interrupted, terminated, hung_up = _signal(signal.SIGINT, 20), _signal(signal.SIGTERM, 30), _signal(signal.SIGHUP, 9)


def another_writer(arena: Arena) -> None:
    @contextlib.contextmanager
    def during() -> Iterator[None]:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException), Staging(arena.destination, overwrite=False, sources=()):
                os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitpid(pid, os.WUNTRACED)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            os.waitpid(pid, 0)

    arena.during = during


def source_changes(arena: Arena) -> None:
    """A byte of a tensor is replaced, and put back after the command; the times tell."""
    path = arena.source / SHARDS[0]

    def change() -> None:
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x07")

    @contextlib.contextmanager
    def during() -> Iterator[None]:
        data = path.read_bytes()
        with at_call(("fsync",), 2, change):
            yield
        path.write_bytes(data)

    arena.during = during


def source_changes_for_verify(arena: Arena) -> None:
    """As `source_changes`, with the byte's own value, while verify reads another part of the file."""
    path = arena.source / SHARDS[0]
    data = path.read_bytes()
    arena.during = lambda: at_call(("read",), 20, lambda: path.write_bytes(data))


def read_error(arena: Arena) -> None:
    arena.during = lambda: failing_from(READS, 25, errno.EIO)


def no_memory(arena: Arena) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError

    arena.during = lambda: mock.patch("zamba_compat.checkpoint.writing.writer._write", fail)


def peak_is_told(arena: Arena) -> None:
    all_arguments(arena, "--dry-run")


def strict_umask(arena: Arena) -> None:
    """Modes are looked at before the umask is given back."""

    @contextlib.contextmanager
    def during() -> Iterator[None]:
        before = os.umask(0o027)
        try:
            yield
        finally:
            os.umask(before)
        for path in (arena.destination, *arena.destination.rglob("*")):
            mode = path.stat().st_mode & 0o7777
            assert mode == (0o750 if path.is_dir() else 0o640), (path, oct(mode))

    arena.during = during
