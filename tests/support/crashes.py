"""Kill a function before its n-th change of the file system, for every n."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from typing import Any

_CHANGES = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "write", "fsync")
KILLED = 77


def each_crash(run: Callable[[], object], *modules: tuple[object, str]) -> Iterator[int]:
    """Run `run` in a forked process that dies at its 1st change, then in one that dies at its 2nd, and so on.

    Yields n after each of these deaths, and stops after the first run that outlives all of its changes. Calls of the
    functions (owner, name) in `modules` count as changes too. Raises AssertionError when a run fails otherwise.
    """
    number = 0
    while True:
        number += 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _arm(number, modules)
                run()
                status = 0
            finally:
                os._exit(status)
        _, result = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(result)
        if status == 0:
            return
        assert status == KILLED, f"the run that was to die at its change {number} ended with {status}"
        yield number


def _arm(number: int, modules: tuple[tuple[object, str], ...]) -> None:
    left = number

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(KILLED)
            return function(*args, **kwargs)

        return call

    for name in _CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    builtins.open = counted(builtins.open)  # type: ignore[assignment]
    for owner, name in modules:
        setattr(owner, name, counted(getattr(owner, name)))
