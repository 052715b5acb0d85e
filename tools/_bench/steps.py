"""What makes something fast, step by step: each on top of those before it, all in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock


class Step(NamedTuple):
    """While it is not taken yet, `name` of `owner` is `instead`."""

    title: str
    owner: Any
    name: str
    instead: Callable[..., Any]


@contextmanager
def taken(steps: Sequence[Step], count: int) -> Iterator[None]:
    """Only the first `count` of them."""
    with ExitStack() as stack:
        for step in steps[count:]:
            stack.enter_context(mock.patch.object(step.owner, step.name, step.instead))
        yield
