"""Trace what a command does to the disk, and say what a loss of power could still take away."""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from zamba_compat.checkpoint.writing import staging


class Event(NamedTuple):
    """One change: "write" or "sync" of a file or directory, "name" for a new name, "put" for a rename or exchange."""

    what: str
    path: Path
    to: Path | None = None


@contextlib.contextmanager
def tracing(events: list[Event]) -> Iterator[None]:
    """Append every change that is made through os, open and exchange."""

    def of(fd: int) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))

    def note(name: str, make: Any) -> Any:
        original = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            events.append(make(*args))
            return result

        return mock.patch.object(os, name, call)

    plain_open, plain_exchange = builtins.open, staging.exchange

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wxa+") and not isinstance(file, int):
            events.append(Event("name", Path(file)))
        return plain_open(file, mode, *args, **kwargs)

    def exchanged(a: Path, b: Path) -> bool:
        done = plain_exchange(a, b)
        if done:
            events.append(Event("put", a, b))
        return done

    patches = [
        note("write", lambda fd, *_: Event("write", of(fd))),
        note("copy_file_range", lambda _, fd, *__: Event("write", of(fd))),
        note("fsync", lambda fd: Event("sync", of(fd))),
        note("mkdir", lambda path, *_: Event("name", Path(path))),
        note("rename", lambda a, b: Event("put", Path(a), Path(b))),
        note("unlink", lambda path, *_: Event("gone", Path(path))),
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(staging, "exchange", exchanged),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def at_risk(events: list[Event], destination: Path) -> list[str]:
    """What is not on the disk for sure: files and names when the directory is put in place, and that step itself
    before the first thing that it replaced is removed, or at the end."""
    put = next(i for i, event in enumerate(events) if event.what == "put" and event.to == destination)
    staged = events[put].path
    before, after = events[:put], events[put + 1 :]
    found = []
    files = {event.path for event in before if event.what == "write" and staged in event.path.parents}
    names = {event.path for event in before if event.what == "name" and staged in event.path.parents}
    for path in sorted(files):
        if _last(before, "write", path) > _last(before, "sync", path):
            found.append(f"the content of {path.name}")
    for path in sorted(names):
        if _last(before, "name", path) > _last(before, "sync", path.parent):
            found.append(f"the name {path.name}")
    for path in sorted({path.parent for path in names} - {staged}):
        if _last(before, "name", path) > _last(before, "sync", path.parent):
            found.append(f"the name {path.name}")
    gone = next((i for i, event in enumerate(after) if event.what == "gone"), len(after))
    if _last(after[:gone], "sync", destination.parent) < 0:
        found.append("the new name of the directory, before the old one is removed")
    if not files:
        found.append("nothing was written")
    return found


def _last(events: list[Event], what: str, path: Path) -> int:
    return max((i for i, event in enumerate(events) if event.what == what and event.path == path), default=-1)
