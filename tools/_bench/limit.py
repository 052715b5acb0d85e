"""A hard limit on memory, the page cache counted: a control group of the kernel's, made for one process and removed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Group:
    """A control group. Processes that join it, and what they start, are killed rather than given more memory."""

    def __init__(self, folder: Path, *, peak: str) -> None:
        self.folder, self._peak = folder, peak

    @property
    def peak_bytes(self) -> int:
        """The most that was in use, pages of files included; these are given back when there is need."""
        return int((self.folder / self._peak).read_text())


@contextmanager
def limited(nbytes: int) -> Iterator[Group]:
    """Make a group with a limit; a process joins with `join`.

    Raises:
        OSError: this user may not make control groups here.
    """
    second = (ROOT / "cgroup.controllers").exists()
    parent = ROOT if second else ROOT / "memory"
    folder = parent / f"zamba-compat-bench-{os.getpid()}"
    folder.mkdir()
    try:
        for name in ("memory.max", "memory.swap.max") if second else ("memory.limit_in_bytes",):
            file = folder / name
            if file.exists():
                file.write_text("0" if "swap" in name else str(nbytes))
        yield Group(folder, peak="memory.peak" if second else "memory.max_usage_in_bytes")
    finally:
        folder.rmdir()


def join(folder: str) -> None:
    """Put this process into a group."""
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))
