"""Signals as exceptions, so that what is half written is removed before the program ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived. Its code, and the exit status where nobody catches it, is 128 + the number."""


class _Shield:
    depth = 0
    pending: int | None = None
    raised: int | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT raises KeyboardInterrupt and SIGTERM and SIGHUP raise Terminated, in the main thread.

    Handlers that the program has set itself stay, and so does a signal that is ignored (nohup). Outside the main
    thread it does nothing: Python delivers signals to the main thread alone.
    """
    if not _in_main_thread():
        yield
        return
    previous = {}
    if all(signal.getsignal(number) is not _handle for number in _NUMBERS):
        _Shield.raised = None  # one that the program outlived says nothing of what it does next
    for number in _NUMBERS:
        handler = signal.getsignal(number)
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            previous[number] = handler
            signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Inside, the signals of `interruptible` wait; the first that came is raised at the end."""
    if not _in_main_thread():
        yield
        return
    _Shield.depth += 1
    try:
        yield
    finally:
        _Shield.depth -= 1
        if not _Shield.depth and _Shield.pending is not None:
            number, _Shield.pending = _Shield.pending, None
            _raise(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _handle(number: int, frame: FrameType | None) -> None:
    if not _Shield.depth:
        _raise(number)
    elif _Shield.pending is None:
        _Shield.pending = number


def received() -> int | None:
    """The number of the last signal that was raised as an exception, and none after it is asked for.

    Libraries in C turn what is raised within them into errors of their own: torch makes of a KeyboardInterrupt in the
    middle of a read a ValueError about shapes.
    """
    number, _Shield.raised = _Shield.raised, None
    return number


def insist() -> None:
    """Raise again what was raised and swallowed, in the main thread; call it before anything that cannot be undone.

    Libraries in C swallow, too: while torch starts, it goes on without numpy, whatever importing that raises.
    """
    if _in_main_thread() and _Shield.raised is not None:
        _raise(_Shield.raised)


def _raise(number: int) -> None:
    _Shield.raised = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)
