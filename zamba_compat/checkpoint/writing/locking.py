"""One writer per destination: a working directory beside it that one process at a time owns."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from zamba_compat.errors import DestinationError

from .swap import sync_directory

_LOCK = "lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
ANOTHER_RUN = "Another run is writing it."


class WorkingDirectory:
    """A hidden directory beside a destination, owned through a lock on a file in it.

    The operating system drops the lock when the process ends, however it ends. The lock is made before and removed
    after everything else in the directory, so a directory with content but without it was not made here.

    Attributes:
        path: the directory, on the destination's file system.
    """

    def __init__(self, destination: Path) -> None:
        self.path = destination.parent / f".{destination.name}.zamba-compat"
        self._destination = destination
        self._made: list[Path] = []  # directories above it, the deepest last
        self._fd = -1

    @property
    def owned(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    def acquire(self) -> None:
        """Make the directory, and those above it that are missing, or take over an abandoned one.

        Raises:
            DestinationError: another process owns it, or the place is not writable.
        """
        try:
            self._make_parents()
            while self._fd < 0:
                self._try()
        except OSError as error:
            self._remove_parents()
            raise self._failure(error) from error

    def check(self) -> None:
        """Refuse a place where no directory could be made; nothing is touched.

        Raises:
            DestinationError: the place is not writable.
        """
        parent = self.path.parent
        try:
            while not os.path.lexists(parent) and parent != parent.parent:
                parent = parent.parent
            if not parent.is_dir():
                code = errno.ENOTDIR if os.path.lexists(parent) else errno.ENOENT
                raise OSError(code, os.strerror(code))
            effective = os.access in os.supports_effective_ids
            if not os.access(parent, os.W_OK | os.X_OK, effective_ids=effective):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DestinationError:
        return DestinationError(
            f"Nothing can be written beside it: {error.strerror or error}.",
            where=str(self._destination),
            remedy="Choose another destination, or make its parent directory writable.",
        )

    def _make_parents(self) -> None:
        missing = [parent for parent in self.path.parents if not os.path.lexists(parent)]
        for parent in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another run makes it too
                parent.mkdir()
                self._made.append(parent)
                sync_directory(parent.parent)

    def _remove_parents(self) -> None:
        """Those that were made here and hold nothing."""
        with contextlib.suppress(OSError):
            while self._made:
                self._made.pop().rmdir()

    def release(self, *, keep: bool = False) -> None:
        """Let go of the directory and remove it, or `keep` it for the next run where it could not be emptied."""
        if not keep:
            with contextlib.suppress(OSError):
                os.unlink(self.path / _LOCK)
        os.close(self._fd)
        self._fd = -1
        with contextlib.suppress(OSError):  # another process may be about to lock it
            self.path.rmdir()
        self._remove_parents()

    def _try(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        lock = self.path / _LOCK
        try:
            foreign = not lock.exists() and any(self.path.iterdir()) and not lock.exists()
        except FileNotFoundError:
            return  # its owner has just removed it
        if foreign or self.path.is_symlink():
            raise DestinationError(
                f"{self.path} is in the way and was not made by an earlier run.",
                where=str(self._destination),
                remedy="Move it away, or choose another destination.",
            )
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except FileNotFoundError:
            return  # its owner has just removed it
        try:
            if not claim(fd):
                raise DestinationError(
                    ANOTHER_RUN,
                    where=str(self._destination),
                    remedy="Wait for that run, or choose another destination.",
                )
            # The owner before may have removed the file between our open and our lock: then we hold nothing.
            if lock.exists() and os.path.samestat(os.fstat(fd), os.stat(lock)):
                self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)


def claim(fd: int) -> bool:
    """Lock an open file for this process until it is closed; False where another process has it.

    Raises:
        OSError: the file system has no locks, or no more of them.
    """
    try:
        _lock(fd)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
