"""Requests from standard input, answers to standard output or whatever else cannot be gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from zamba_compat.errors import CheckpointError, DestinationError

STDIN, STDOUT = "standard input", "standard output"
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def is_stdout(path: Path) -> bool:
    """Whether a path names this process's standard output."""
    return path.as_posix() in _STDOUT


def is_stream(path: Path) -> bool:
    """Whether answers that are written there cannot be found again: standard output, a pipe, a device."""
    return is_stdout(path) or (path.exists() and not path.is_file() and not path.is_dir())


def read_bytes(path: Path) -> tuple[bytes, str]:
    """What a file holds, or standard input for "-"; and what to call it in messages.

    Raises:
        CheckpointError: it cannot be read.
    """
    where = STDIN if str(path) == "-" else str(path)
    try:
        if where != STDIN:
            return path.read_bytes(), where
        if sys.stdin is None:
            raise CheckpointError("It is closed.", where=where, remedy="Give a file.")
        return sys.stdin.buffer.read(), where
    except OSError as error:
        raise CheckpointError(
            f"It cannot be read: {error.strerror or error}.", where=where, remedy="Give a file."
        ) from error


class Stream:
    """Takes answers as a `Journal` does, and keeps no account of them: an interrupted run begins anew.

    Attributes:
        done: answers written.
    """

    def __init__(self, path: Path) -> None:
        """Use it as a context manager; nothing is touched before the `with` block."""
        self.path, self.done = path, 0
        self._where = STDOUT if is_stdout(path) else str(path)
        self._exit = contextlib.ExitStack()
        self._file: BinaryIO | None = None  # None: sys.stdout

    def __enter__(self) -> Stream:
        """Open it.

        Raises:
            DestinationError: it cannot be written.
        """
        if not is_stdout(self.path):
            try:
                self._file = self._exit.enter_context(open(self.path, "wb", buffering=0))
            except OSError as error:
                raise self._failure(error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    def append(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write answers, at once.

        Raises:
            DestinationError: it cannot be written.
            BrokenPipeError: nobody reads it any more.
        """
        lines = [json.dumps(answer, ensure_ascii=self._file is None and not _takes_utf8()) + "\n" for answer in answers]
        try:
            if self._file is None:
                sys.stdout.write("".join(lines))
                sys.stdout.flush()
            else:
                data = "".join(lines).encode()
                while data:
                    data = data[os.write(self._file.fileno(), data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failure(error) from error
        self.done += len(lines)

    def _failure(self, error: OSError) -> DestinationError:
        return DestinationError(
            f"It could not be written: {error.strerror or error}.", where=self._where, remedy="Choose another output."
        )


def _takes_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
