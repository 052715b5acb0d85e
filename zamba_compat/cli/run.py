"""Run a program with the adapters armed, here and in every Python that it starts.

PROGRAM is a console script (lm_eval, mergekit-yaml, accelerate, transformers), a .py file, any other program, or
`-m MODULE`. Arguments, input and output are the program's own, and so is the exit status.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from zamba_compat.cli.usage import WrongUsage
from zamba_compat.errors import ZambaCompatError

EXAMPLES = """
  zamba-compat run -- lm_eval --model hf --model_args pretrained=CHECKPOINT --tasks TASK
  zamba-compat run -- mergekit-yaml merge_config.yaml OUT
  zamba-compat run -- accelerate launch --num_processes 2 train.py
"""
ARMED = Path(__file__).parents[1] / "_startup"
_SHEBANG = 128  # bytes of a script's first line that tell its interpreter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARGS", help="what to run")


def run(options: argparse.Namespace) -> int:
    words = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not words:
        raise WrongUsage("No program is named.", remedy="Write: zamba-compat run -- PROGRAM ARGS")
    arm_children()
    try:
        start(words)
    except (SystemExit, ZambaCompatError):
        raise
    except BaseException as error:  # the program's own: shown as Python shows it, never explained as ours
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def arm_children() -> None:
    """Arm the adapters in every Python that this process starts, by way of PYTHONPATH; twice is as once."""
    present = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ARMED) not in present:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ARMED), *filter(None, present)])


def start(words: list[str]) -> None:
    """Run the program in this interpreter, or in this process's place where it is not written in Python.

    Raises:
        ZambaCompatError: there is no such program.
        SystemExit, and anything else: the program's own.
    """
    program, *arguments = words
    if program == "-m":
        if not arguments:
            raise WrongUsage("No module is named after -m.", remedy="Write: zamba-compat run -- -m MODULE ARGS")
        module, *rest = arguments
        sys.argv = [module, *rest]
        sys.path.insert(0, os.getcwd())  # as python -m does
        _refuse_absent_module(module)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    if program in ("python", "python3"):  # the one whose packages these are; it finds them by its own name
        os.execv(sys.executable, [sys.executable, *arguments])
    script = _console_script(program)
    if script is not None:
        sys.argv = [shutil.which(program) or program, *arguments]
        raise SystemExit(script())
    path = program if os.path.isfile(program) else shutil.which(program)
    if path is None:
        _refuse(program)
    if path.endswith(".py") or _is_python(path):
        sys.argv = [path, *arguments]
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # as python PATH does
        runpy.run_path(path, run_name="__main__")
        return
    try:
        os.execv(path, [program, *arguments])
    except OSError as error:
        remedy = "Give a program, a .py file, a console script, or -m MODULE."
        raise ZambaCompatError(f"It cannot be run: {error.strerror}.", where=path, remedy=remedy) from error


def _console_script(name: str) -> Callable[[], object] | None:
    """The function behind a console script of this environment, None where there is no such script."""
    from importlib.metadata import entry_points

    found = next(iter(entry_points(group="console_scripts", name=name)), None)
    script: Callable[[], object] | None = None if found is None else found.load()
    return script


def _is_python(path: str) -> bool:
    """Whether a file is a script for Python."""
    try:
        with open(path, "rb") as file:
            first = file.read(_SHEBANG).split(b"\n", 1)[0]
    except OSError:
        return False
    return first.startswith(b"#!") and b"python" in first


def _refuse_absent_module(module: str) -> None:
    from importlib.util import find_spec

    try:
        present = find_spec(module) is not None
    except (ImportError, ValueError):
        present = False
    if not present:
        remedy = f"Install what holds it into the environment of {sys.executable}, or check the name."
        raise ZambaCompatError("There is no such module.", where=module, remedy=remedy)


def _refuse(program: str) -> NoReturn:
    import difflib
    from importlib.metadata import entry_points

    names = sorted({script.name for script in entry_points(group="console_scripts")})
    near = difflib.get_close_matches(program, names, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Install it into this environment, or give its path."
    raise ZambaCompatError("There is no console script, file or program of this name.", where=program, remedy=hint)
