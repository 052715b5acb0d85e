"""Say how far a long pass is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """What shows progress, such as a tqdm."""

    def update(self, n: int) -> object: ...
    def close(self) -> object: ...


Progress = Callable[[str, int], Bar]  # what is done, how many bytes there are


@contextmanager
def counting(progress: Progress | None, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of bytes just done; it does nothing without `progress` or bytes."""
    if progress is None or total == 0:
        yield lambda count: None
        return
    bar = progress(what, total)

    def update(count: int) -> None:
        bar.update(count)

    try:
        yield update
    finally:
        bar.close()
