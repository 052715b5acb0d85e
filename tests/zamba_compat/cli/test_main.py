"""The command line as a whole: one line per failure, an exit status of its own for each kind."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zamba_compat.cli import main as module
from zamba_compat.cli.main import COMMANDS, main

TINY = str(Path(__file__).parents[2] / "fixtures" / "tiny" / "base")
PAGE = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text(encoding="utf-8")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("zamba_compat.operations.verify.verify", fail)


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), ZeroDivisionError("a\nb"), IndexError("y" * 999)])
def test_an_unexpected_exception_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert main(["verify", "x"]) == 4
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and len(err) < 600
    for words in ("a fault in zamba_compat", type(error).__name__, "--debug"):
        assert words in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 bytes"),
    ],
)
def test_row_57_out_of_memory(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert main(["verify", "x"]) == 3
    err = capsys.readouterr().err
    assert "Out of memory" in err and "--dry-run" not in err and "--load" not in err  # verify has neither


@pytest.mark.parametrize(
    ("words", "hint"),
    [(("convert-checkpoint", "x", "y"), "--dry-run"), (("generate", "x", "y"), "--load 4bit")],
)
def test_row_57_the_remedy_is_one_that_the_command_has(
    words: tuple[str, ...], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        raise MemoryError

    file = COMMANDS[words[0]][0]
    monkeypatch.setattr(importlib.import_module(f"zamba_compat.cli.{file}"), "run", run)
    assert main(words) == 3 and hint in capsys.readouterr().err


def test_closed_streams_are_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    """As a shell's `<&- >&-` leaves them."""
    program = "import sys; sys.stdin = sys.stdout = None; from zamba_compat.cli.main import main; sys.exit(main({}))"
    for words, status, told in (
        (["generate", "x"], 3, "standard input: It is closed"),
        (["generate", "x", "\udcff"], 3, "PROMPT: It holds bytes that are no UTF-8"),
        (["doctor"], 0, ""),
    ):
        assert subprocess.run([sys.executable, "-c", program.format(words)]).returncode == status, words
        assert told in capfd.readouterr().err


def test_the_traceback_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no such directory"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("zamba-compat inspect: no such directory: ") and err.count("\n") == 1
    done = subprocess.run(
        [sys.executable, "-m", "zamba_compat", "inspect", "no such directory", "--debug"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and "does not exist" in done.stderr


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("dokter", "did you mean doctor?"),
        ("convert", "did you mean convert-checkpoint?"),
        ("verfy", "did you mean verify?"),
        ("xyzzy", "there are doctor, inspect, convert-checkpoint"),
    ],
)
def test_near_commands_are_suggested(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert f"{word!r} is no command; {hint}" in capsys.readouterr().err


def test_exit_statuses_are_documented() -> None:
    for status in (0, 1, 2, 3, 4, module.EXIT_INTERRUPTED, 143, 129, module.EXIT_PIPE):
        assert str(status) in module.EPILOG
        assert f"| {status} |" in PAGE
    shown = " ".join(module.parser().format_help().split())
    assert "4 a fault in this package" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise")
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_broken_pipe_ends_quietly(unbuffered: bool) -> None:
    flags = ["-u"] if unbuffered else []
    process = subprocess.Popen(
        [sys.executable, *flags, "-m", "zamba_compat", "inspect", TINY, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()  # before anything is written
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zamba_compat", "inspect", b"caf\xff-\xc3\xa9"],
        capture_output=True,
        env={"PATH": "", "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
    )
    assert done.returncode == 3 and b"does not exist" in done.stderr and b"Traceback" not in done.stderr


def test_row_54_a_signal_that_a_library_makes_another_error_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does: a ValueError about shapes, where a signal was raised within it."""
    import contextlib
    import os
    import signal

    from zamba_compat.checkpoint.writing.signals import interruptible

    def verify(*args: object, **kwargs: object) -> None:
        with interruptible():
            with contextlib.suppress(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("could not determine the shape of object type")

    monkeypatch.setattr("zamba_compat.operations.verify.verify", verify)
    assert main(["verify", "x"]) == 143
    failing(monkeypatch, ValueError())
    assert main(["verify", "x"]) == 4  # it is forgotten
