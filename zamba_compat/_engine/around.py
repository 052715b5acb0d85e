"""Replacements that change a call's arguments, or what surrounds the call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any


def around(original: Any, change: Callable[[dict[str, Any]], AbstractContextManager[object]]) -> Any:
    """`original`, each call of it inside a context that sees the arguments first.

    Args:
        original: a function whose signature can be read.
        change: takes the arguments by name, as `inspect.BoundArguments.arguments`: what it changes there, the call
            gets. A name that `original` has no parameter for is left out of the call.
    """
    import inspect

    signature = inspect.signature(original)

    @functools.wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        with change(bound.arguments):
            return original(*bound.args, **bound.kwargs)

    return called
