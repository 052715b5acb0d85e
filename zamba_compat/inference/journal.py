"""The output file of a batch: answers in the order of the prompts, each once, whatever interrupts the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from zamba_compat.checkpoint.writing.locking import ANOTHER_RUN, claim
from zamba_compat.checkpoint.writing.swap import sync_directory
from zamba_compat.errors import CheckpointError, DestinationError

STATE = ".state.json"


class Journal:
    """A JSONL file that is only ever appended to, and beside it what it answers: the prompts' hash and the options.

    What is promised: after SIGKILL or a loss of power the file holds the first n answers whole, and at most one torn
    line after them, which the next run removes before it goes on with answer n. Prompts or options that have changed
    in between are refused.

    Attributes:
        done: answers that are there.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Use it as a context manager; nothing is touched before the `with` block.

        Args:
            path: the output.
            identity: what the answers depend on; must be the same when the run is resumed.
            overwrite: begin anew.
        """
        self.path, self._state = path, path.with_name(path.name + STATE)
        self._identity, self._overwrite = dict(identity), overwrite
        self._exit = contextlib.ExitStack()
        self._file: BinaryIO
        self.done = 0

    def __enter__(self) -> Journal:
        """Open or create the file, for this process alone.

        Raises:
            DestinationError: it is in use, it answers other prompts, or it cannot be written.
            CheckpointError: a line in it is no answer.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(self.path, "a+b", buffering=0))
            except OSError as error:
                raise self._failure(error) from error
            self._lock(file)
            if self._overwrite:
                file.truncate(0)
                self._state.unlink(missing_ok=True)
            self._check_state(empty=os.fstat(file.fileno()).st_size == 0)
            self.done = self._read(file)
            with contextlib.suppress(OSError):  # a file system that syncs no directories
                sync_directory(self.path.absolute().parent)
            self._file = file
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    def append(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write answers and wait until they are on the disk.

        Raises:
            DestinationError: the disk is full, or refuses.
        """
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
        data = "".join(lines).encode()
        try:
            while data:
                data = data[os.write(self._file.fileno(), data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from error
        self.done += len(lines)

    def _lock(self, file: BinaryIO) -> None:
        if sys.platform == "win32":  # a lock there keeps even readers of the answers away
            return
        try:
            claimed = claim(file.fileno())
        except OSError as error:
            raise self._failure(error) from error
        if not claimed:
            raise DestinationError(
                ANOTHER_RUN, where=str(self.path), remedy="Wait for that run, or choose another output."
            )

    def _check_state(self, *, empty: bool) -> None:
        """Compare what the file answers with what is asked; written first of all, so that answers never lack it."""
        if not self._state.exists():
            if not empty:
                raise DestinationError(
                    f"It is not empty, and no {self._state.name} says what it answers.",
                    where=str(self.path),
                    remedy="Choose another output, or begin anew with --overwrite.",
                )
            staged = self._state.with_name(self._state.name + ".new")
            try:
                with open(staged, "w", encoding="utf-8") as file:
                    json.dump(self._identity, file, indent=1, sort_keys=True)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(staged, self._state)
            except OSError as error:
                raise self._failure(error) from error
            return
        try:
            before = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DestinationError(
                f"It cannot be read: {error}.", where=str(self._state), remedy="Begin anew with --overwrite."
            ) from error
        wanted = json.loads(json.dumps(self._identity))
        if before != wanted:
            keys = {*before, *wanted} if isinstance(before, dict) else {"all"}
            changed = sorted(key for key in keys if not isinstance(before, dict) or before.get(key) != wanted.get(key))
            raise DestinationError(
                f"It was begun with something else: {', '.join(changed)} changed since.",
                where=str(self.path),
                remedy="Give what it was begun with to resume it, or begin anew with --overwrite.",
            )

    def _read(self, file: BinaryIO) -> int:
        """How many answers there are; a torn line at the end is cut off."""
        file.seek(0)
        count = end = 0
        for line in _lines(file):
            if not line.endswith(b"\n"):
                break
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict) or found.get("index") != count:
                raise CheckpointError(
                    f"Line {count + 1} is not answer {count}.",
                    where=str(self.path),
                    remedy="It was edited or damaged: remove it and what follows, or begin anew with --overwrite.",
                )
            count, end = count + 1, end + len(line)
        file.truncate(end)
        file.seek(0, os.SEEK_END)
        return count

    def _failure(self, error: OSError) -> DestinationError:
        return DestinationError(
            f"It could not be written: {error.strerror or error}. The answers before are kept.",
            where=str(self.path),
            remedy="Make room or choose another output, then run it again: it goes on where it stopped.",
        )


def digest(data: bytes) -> str:
    """sha256, as a hex string."""
    return hashlib.sha256(data).hexdigest()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of an unbuffered file, without closing it."""
    rest = b""
    while part := file.read(2**20):
        rest += part
        *whole, rest = rest.split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest
