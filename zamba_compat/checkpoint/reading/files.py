"""Files of a checkpoint: names that cannot leave its directory, regular files only, and whether they changed."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from zamba_compat.errors import CheckpointError

from .strict_json import LIMIT, listed

_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# Bytes per write: from 512 KiB on, Linux looks for memory in larger blocks, and ext4 takes up to ten times as long.
_PIECE = 2**18
_LONGEST_NAME = 255  # bytes: NAME_MAX of every common file system
_READ = 2**20  # bytes per read: `read` sets aside as much as it is asked for


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells that a file is still the one that was opened; times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int  # moves with every write, also where mtime is set back


def state_of(fd: int) -> FileState:
    """The state of an open file."""
    found = os.fstat(fd)
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def open_regular(path: Path, *, where: str) -> int:
    """Open a file for reading; never waits, as opening a FIFO would. Returns a descriptor to close.

    Raises:
        CheckpointError: it does not exist, cannot be read, or is no regular file.
    """
    remedy = "Only regular files are read; put the checkpoint's own file there."
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: to open a device can have effects
            raise CheckpointError("This is no regular file.", where=where, remedy=remedy)
        fd = os.open(path, _OPEN)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"The file cannot be read: {reason}.", where=where, remedy="Check the path.") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError("This is no regular file.", where=where, remedy=remedy)
    return fd


def read_small(path: Path, *, where: str) -> tuple[bytes, FileState, str]:
    """A whole file of at most `strict_json.LIMIT` bytes, its state, and its sha256 (hex).

    Raises:
        CheckpointError: as `open_regular`, or a larger file.
    """
    fd = open_regular(path, where=where)
    try:
        state = state_of(fd)
        data = read_at(fd, LIMIT + 1, 0, where=where)
    finally:
        os.close(fd)
    if len(data) > LIMIT:
        remedy = "Is it the right file?"
        raise CheckpointError(f"It has more than the {LIMIT} bytes that are read here.", where=where, remedy=remedy)
    return data, state, sha256(data).hexdigest()


def read_piece(fd: int, length: int, *, where: str) -> bytes:
    """As os.read: up to `length` bytes of an open file, none at its end.

    Raises:
        CheckpointError: the disk or the network behind it fails.
    """
    try:
        return os.read(fd, length)
    except OSError as error:
        raise unreadable(error, where) from error


def read_at(fd: int, length: int, offset: int, *, where: str) -> bytes:
    """Up to `length` bytes from `offset` on; fewer only at the file's end. Raises CheckpointError as `read_piece`."""
    os.lseek(fd, offset, os.SEEK_SET)
    parts = []
    while length > 0 and (part := read_piece(fd, min(length, _READ), where=where)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def unreadable(error: OSError, where: str) -> CheckpointError:
    """What to raise where reading an open file fails."""
    reason = error.strerror or str(error)
    return CheckpointError(f"Reading failed: {reason}.", where=where, remedy="Check the disk, or get the file again.")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` at the file's position, however many calls it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:_PIECE]) :]


def check_shard_name(name: str, suffixes: tuple[str, ...], *, where: str) -> None:
    """Refuse a shard name that is not the bare name of a weights file, by the rules of every operating system.

    Raises:
        CheckpointError: a path (also absolute, with a drive or with backslashes), another kind of file, control
            characters, a name longer than any file's.
    """
    if not name or any(mark in name for mark in "/\\:") or name in (".", ".."):
        raise CheckpointError(
            f"The shard {listed([name])} is a path, not the name of a file beside the index.",
            where=where,
            remedy="Put the shards beside the index and write their bare names.",
        )
    if not name.isprintable():
        raise CheckpointError(
            f"The shard name {listed([name])} has characters that cannot be shown.",
            where=where,
            remedy="Rename the shard, in the index too.",
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise CheckpointError(
            f"The shard name {listed([name])} has {len(name.encode())} bytes; file systems take {_LONGEST_NAME}.",
            where=where,
            remedy="Write the index again, or get it from the checkpoint's source.",
        )
    if not name.endswith(suffixes):
        raise CheckpointError(
            f"The shard {listed([name])} is no {' or '.join(suffixes)} file.",
            where=where,
            remedy="An index names one kind of file only: convert the shard first, or correct the index.",
        )


def stays_inside(path: Path, directory: Path) -> bool:
    """Whether `path`, links followed, lies in `directory`, or is a link of the hub's cache to its own blobs.

    Args:
        directory: with its own links resolved.
    """
    real = Path(os.path.realpath(path))
    if directory in real.parents:
        return True
    for parent in (directory, *directory.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            return real.parent == Path(os.path.realpath(parent.parent.parent / "blobs"))
    return False


def resolve_inside(directory: Path, name: str, *, where: str) -> Path:
    """The real path of `name` in `directory`.

    Raises:
        CheckpointError: a link that leads out of the checkpoint.
    """
    path = directory / name
    if not stays_inside(path, directory):
        raise CheckpointError(
            f"{listed([name])} is a link that leads out of the checkpoint, to {listed([os.path.realpath(path)])}.",
            where=where,
            remedy="Copy the file into the checkpoint's directory.",
        )
    return Path(os.path.realpath(path))


def refuse_case_collisions(names: Iterable[str], *, where: str) -> None:
    """Refuse file names of which another file system would keep only one.

    Raises:
        CheckpointError: two names that differ only in case or in their Unicode form.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise CheckpointError(
                f"The file names {listed([other, name])} are one and the same where case does not count.",
                where=where,
                remedy="Rename one of them, in the index too.",
            )
