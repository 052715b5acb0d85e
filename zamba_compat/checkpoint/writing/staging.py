"""Write a directory beside its destination and put it in place all at once."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from zamba_compat.checkpoint.reading.files import open_regular, read_piece, write_all
from zamba_compat.errors import DestinationError

from .locking import WorkingDirectory
from .signals import Terminated, insist, interruptible, shielded
from .swap import exchange, sync_directory

__all__ = ["Staging", "Terminated", "begun"]

_COPY = 2**20


class Staging:
    """A directory that becomes `destination` at `commit`, or leaves no trace.

    What is promised. An exception, SIGINT, SIGTERM or SIGHUP before `commit` removes everything that was written and
    leaves the destination as it was. After SIGKILL or a loss of power at any moment the destination is whole, the old
    one or the new one, never a mixture; what is left beside it is removed by the next run with this destination.
    Replacing a directory that is not empty is one step where the file system can exchange two names (Linux: ext4, xfs,
    btrfs, tmpfs and others; macOS: APFS). Elsewhere it is two renames: a run killed between them leaves the old
    directory whole under `.NAME.zamba-compat/old` and nothing at the destination, and the next run with this
    destination puts it back before it does anything else.

    Attributes:
        destination: its real path.
        path: the directory to fill, on the same file system; exists inside the `with` block.
        files: name -> (bytes, sha256 in hex) of what `write` and `copy` made.
    """

    def __init__(self, destination: str | os.PathLike[str], *, overwrite: bool, sources: Sequence[Path]) -> None:
        """Nothing is touched before the `with` block.

        Args:
            destination: the directory to make; links are followed.
            overwrite: replace one that is not empty.
            sources: directories that are read meanwhile, see `Checkpoint.roots`.
        """
        self.destination = Path(os.path.realpath(destination))
        self._overwrite, self._sources = overwrite, [Path(os.path.realpath(source)) for source in sources]
        self._working = WorkingDirectory(self.destination)
        self.path = self._working.path / "new"
        self._old = self._working.path / "old"
        self.files: dict[str, tuple[int, str]] = {}
        self._exit = ExitStack()

    def check(self) -> None:
        """Refuse what the `with` block would refuse, as far as it can be seen without touching anything.

        Raises:
            DestinationError: as the `with` block, but for a destination that is in use.
        """
        self._refuse_overlap()
        self._refuse_content()
        self._working.check()

    def __enter__(self) -> Staging:
        """Lock the destination, clean up after a killed run, make the directory.

        Raises:
            DestinationError: a destination that is not empty (without overwrite), is no directory, overlaps a source,
                is in use, or cannot be written.
        """
        self._refuse_overlap()
        with ExitStack() as stack:
            stack.enter_context(interruptible())
            with shielded():
                self._working.acquire()
                # A signal can come between any two steps of this method, of __exit__ and of those who call them.
                atexit.register(self._clean_up)
                stack.callback(self._clean_up)
            self._recover()
            self._refuse_content()
            try:
                self.path.mkdir()
            except OSError as error:
                raise self._failure(error) from error
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.__exit__(None, None, None)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open a new file, unbuffered, for writing; when the block ends its content is on the disk.

        Its mode follows the umask. `name` may be in one subdirectory.

        Raises:
            DestinationError: the disk is full, or refuses the file; also for an OSError in the block.
        """
        insist()
        path = self.path / name
        try:
            if path.parent != self.path:
                path.parent.mkdir(exist_ok=True)
            with open(path, "xb", buffering=0) as file:
                yield file
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def write(self, name: str, data: bytes | str) -> None:
        """Write a small file; text as UTF-8. Raises DestinationError as `create`."""
        data = data.encode() if isinstance(data, str) else data
        with self.create(name) as file:
            write_all(file.fileno(), data)
        self.files[name] = len(data), sha256(data).hexdigest()

    def copy(self, path: Path, name: str | None = None) -> None:
        """Copy a file's content, under its own name unless another is given.

        Raises:
            DestinationError: as `create`.
            CheckpointError: `path` is no regular file, or cannot be read.
        """
        name = name or path.name
        source = open_regular(path, where=str(path))
        size, digest = 0, sha256()
        with open(source, "rb", buffering=0), self.create(name) as file:
            while part := read_piece(source, _COPY, where=str(path)):
                write_all(file.fileno(), part)
                size += len(part)
                digest.update(part)
        self.files[name] = size, digest.hexdigest()

    def require(self, nbytes: int) -> None:
        """Refuse when the file system has less than `nbytes` free; the old content stays until the end.

        Raises:
            DestinationError
        """
        free = shutil.disk_usage(self.path).free
        if free < nbytes:
            raise DestinationError(
                f"{nbytes / 1e9:.3f} GB are to be written, {free / 1e9:.3f} GB are free.",
                where=str(self.destination),
                remedy="Free some space, or choose a destination on another disk.",
            )

    def commit(self) -> None:
        """Put the directory in the destination's place. Write nothing after it.

        Raises:
            DestinationError: something has appeared at the destination, or it cannot be replaced; or it was replaced,
                and the disk does not confirm it.
        """
        try:
            for directory, _, _ in os.walk(self.path):
                sync_directory(Path(directory))
            insist()
            with shielded():
                self._put_in_place()
                self._confirm()
        except OSError as error:
            raise self._failure(error) from error

    def _confirm(self) -> None:
        try:
            sync_directory(self.destination.parent)
            sync_directory(self._working.path)
        except OSError as error:
            raise DestinationError(
                f"The new content is in place, but the disk does not confirm it: {error.strerror or error}.",
                where=str(self.destination),
                remedy="Look after the disk: a loss of power could bring back what was there before.",
            ) from error

    def _put_in_place(self) -> None:
        if os.path.lexists(self.destination) and not self.destination.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "there is something now that is no directory")
        if not (self._overwrite and _has_content(self.destination)):
            if os.name == "nt" and self.destination.exists():
                self.destination.rmdir()  # elsewhere a rename replaces an empty directory
            os.rename(self.path, self.destination)
        elif not exchange(self.path, self.destination):
            os.rename(self.destination, self._old)
            try:
                os.rename(self.path, self.destination)
            except OSError:
                os.rename(self._old, self.destination)
                raise
            os.rename(self._old, self.path)  # nothing half removed may be called old: _recover puts that back

    def _recover(self) -> None:
        """Undo what a killed run left: half-written files, and an old directory that is not in its place."""
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            if self._old.exists() and not _has_content(self.destination):
                os.rename(self._old, self.destination)
                sync_directory(self.destination.parent)
            elif self._old.exists():
                os.rename(self._old, self.path)
                shutil.rmtree(self.path)
        except OSError as error:
            raise self._failure(error) from error

    def _clean_up(self) -> None:
        with shielded():
            atexit.unregister(self._clean_up)
            if not self._working.owned:
                return
            if self._old.exists() and not self.destination.exists():
                os.rename(self._old, self.destination)
            # What cannot be removed now is the next run's to remove; the lock tells it that this is ours.
            shutil.rmtree(self.path, ignore_errors=True)
            self._working.release(keep=self.path.exists() or self._old.exists())

    def _refuse_overlap(self) -> None:
        for source in self._sources:
            if _same(source, self.destination):
                relation = "is the source itself"
            elif any(_same(source, parent) for parent in self.destination.parents):
                relation = f"lies inside the source {source}"
            elif any(_same(self.destination, parent) for parent in source.parents):
                relation = f"contains the source {source}"
            else:
                continue
            raise DestinationError(
                f"The destination {relation}.",
                where=str(self.destination),
                remedy="Choose a destination outside of it; the source is never changed.",
            )

    def _refuse_content(self) -> None:
        where, remedy = str(self.destination), "Choose another destination."
        if not os.path.lexists(self.destination):
            return
        if not self.destination.is_dir():
            raise DestinationError("There is something that is no directory.", where=where, remedy=remedy)
        if os.path.ismount(self.destination):
            raise DestinationError("It is a mount point, which no directory can replace.", where=where, remedy=remedy)
        if not _has_content(self.destination):
            return
        if not self._overwrite:
            remedy = "Choose another destination, or replace this one with --overwrite."
            raise DestinationError("The destination is not empty.", where=where, remedy=remedy)
        places = (Path.cwd(), Path(os.path.realpath(Path.home())))
        if any(self.destination == place or self.destination in place.parents for place in places):
            what = "It holds the home directory or the one this runs in, and is not replaced."
            raise DestinationError(what, where=where, remedy=remedy)
        if not os.access(self.destination, os.W_OK | os.X_OK):
            raise DestinationError("It is read-only, so it cannot be replaced.", where=where, remedy=remedy)

    def _failure(self, error: OSError) -> DestinationError:
        return DestinationError(
            f"It could not be written: {error.strerror or error}. What was there before is unchanged.",
            where=str(self.destination),
            remedy="Make room or choose another destination, then run it again.",
        )


def begun(
    stack: ExitStack, destination: str | os.PathLike[str], *, overwrite: bool, sources: Sequence[Path], dry_run: bool
) -> Staging | None:
    """A Staging that `stack` has entered; for a dry run None, and the destination is looked at.

    Raises:
        DestinationError: as the `with` block, or `Staging.check`.
    """
    staging = Staging(destination, overwrite=overwrite, sources=sources)
    if not dry_run:
        return stack.enter_context(staging)
    staging.check()
    return None


def _has_content(path: Path) -> bool:
    return os.path.lexists(path) and (not path.is_dir() or any(path.iterdir()))


def _same(a: Path, b: Path) -> bool:
    """Whether two paths, links resolved, are one directory; also where case does not count and in bind mounts."""
    if a == b:
        return True
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
