"""Signals as exceptions, held back where they would do harm."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from zamba_compat.checkpoint.writing.signals import Terminated, insist, interruptible, shielded

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, Terminated, 143), (signal.SIGHUP, Terminated, 129)],
)
def test_row_54_signals_raise(number: int, error: type[BaseException], code: int | None) -> None:
    before = signal.getsignal(number)
    with pytest.raises(error) as caught, interruptible():
        send(number)
        time.sleep(5)  # the signal comes first
    assert getattr(caught.value, "code", None) == code
    assert signal.getsignal(number) is before


def test_a_shield_holds_the_first_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Terminated), interruptible():
        with shielded():
            with shielded():
                send(signal.SIGTERM)
                send(signal.SIGINT)
            print("inside")
        print("outside")
    assert capsys.readouterr().out == "inside\n"
    with interruptible(), shielded():
        pass  # nothing is left over


def test_handlers_of_the_program_stay() -> None:
    def own(number: int, frame: object) -> None:
        raise LookupError

    before = signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(LookupError), interruptible():
            send(signal.SIGHUP)
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with interruptible(), shielded():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_a_library_swallowed_is_raised_again() -> None:
    with pytest.raises(Terminated), interruptible():
        with interruptible(), contextlib.suppress(Terminated):
            send(signal.SIGTERM)
            time.sleep(5)
        insist()
        pytest.fail("it was lost")
    with interruptible():
        insist()  # nothing is left over
