"""zamba-compat COMMAND ...: finds the command's file and runs it; nothing else is imported.

Every failure ends as one line on standard error that says what, where and the remedy (a table of copies that differ
may follow it), and in an exit status of its own kind; with --json the same is printed as JSON too. --debug shows the
traceback instead.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import os
import re
import sys
from collections.abc import Sequence

from zamba_compat._version import __version__
from zamba_compat.cli.usage import Help, Parser, WrongUsage
from zamba_compat.errors import ZambaCompatError

# Command -> its module and what it does.
COMMANDS = {
    "doctor": ("doctor", "what is installed, which adapters apply, whether Zamba2 is built right here"),
    "inspect": ("inspect", "what a checkpoint holds and whether it is whole; how far two lie apart"),
    "convert-checkpoint": ("convert", "a checkpoint from any layout to another"),
    "merge": ("merge", "checkpoints by mergekit's configuration, shared blocks understood"),
    "extract-lora": ("extract_lora", "a PEFT adapter from the difference of two checkpoints"),
    "quantize": ("quantize", "a checkpoint with bitsandbytes, without building the model"),
    "generate": ("generate", "text from a prompt, as it comes"),
    "chat": ("chat", "a conversation, through the model's chat template"),
    "batch": ("batch", "answers to a JSONL file of prompts, resumed where it was interrupted"),
    "evaluate": ("evaluate", "perplexity and questions, several models side by side"),
    "upload": ("upload", "a checkpoint or an adapter to the hub, in one commit"),
    "run": ("run", "any program with the adapters armed"),
    "verify": ("verify", "that a checkpoint is, to the last byte, what was written"),
}

EXIT_OK, EXIT_FAULT, EXIT_USAGE, EXIT_ERROR, EXIT_BUG = 0, 1, 2, 3, 4
EXIT_INTERRUPTED, EXIT_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as a shell has them
_SIGNALS = {143: "SIGTERM", 129: "SIGHUP"}
EPILOG = (
    "exit status: 0 done; 1 a fault was found; 2 wrong usage; 3 an error: the message says what, where and the remedy; "
    "4 a fault in this package; 130, 143 and 129 stopped by SIGINT, SIGTERM and SIGHUP, with nothing left half done; "
    "141 nobody reads the output"
)


def parser() -> Parser:
    """The parser of all commands. Its errors are `WrongUsage`, raised."""
    Parser.commands = tuple(COMMANDS)
    top = Parser(
        prog="zamba-compat",
        description="Zamba2 checkpoints that load, compute and save right in every transformers release.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"zamba-compat {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (file, summary) in COMMANDS.items():
        module = importlib.import_module(f"zamba_compat.cli.{file}")
        epilog = f"examples:\n{module.EXAMPLES.rstrip()}\n\n{EPILOG}"
        sub = commands.add_parser(name, help=summary, description=module.__doc__, epilog=epilog, formatter_class=Help)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks is shown, not a reason to fail
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else list(argv)
    options = argparse.Namespace(command="", debug=False, json=_asks_for_json(words))
    _signal()  # forget those of an earlier command in this process
    try:
        commands = parser()
        _complete(commands)
        commands.parse_args(words, options)
        if options.command != "run":
            _keep_quiet(options)
        status = int(options.run(options))
        sys.stdout.flush()  # while a reader that has gone can still be noticed
        return status
    except KeyboardInterrupt as stopped:
        kept = stopped.args[0] if stopped.args and isinstance(stopped.args[0], ZambaCompatError) else None
        return _ended(EXIT_INTERRUPTED, kept or _stopped("SIGINT"), options, kept)
    except SystemExit as ended:
        if ended.code not in _SIGNALS or options.command == "run":
            raise  # --help, and what a program says
        return _ended(int(ended.code), _stopped(_SIGNALS[int(ended.code)]), options, None)
    except BrokenPipeError:
        return _nobody_reads()
    except Exception as error:
        if number := _signal():
            return _ended(128 + number, _stopped(_SIGNALS.get(128 + number, f"signal {number}")), options, None)
        if options.debug and not isinstance(error, WrongUsage):
            raise
        status, found = _explained(error, options)
        return _ended(status, found, options, found)


def _stopped(signal: str) -> ZambaCompatError:
    return ZambaCompatError(f"Stopped by {signal}.", remedy="Nothing is left half done: run it again.")


def _ended(status: int, error: ZambaCompatError, options: argparse.Namespace, told: object) -> int:
    """Say why a command ended, and return the status: as JSON where that was asked for, to a person if `told`."""
    try:
        name = f"zamba-compat {options.command}".rstrip()
        if options.json:
            words = {"what": error.what, "where": error.where, "remedy": error.remedy or f"See {name} --help."}
            print(
                json.dumps({"error": words, "status": status}), file=getattr(options, "report", sys.stdout), flush=True
            )
        if told:
            print(f"{name}: {_line(error, name)}", file=sys.stderr)
    except BrokenPipeError:
        return _nobody_reads()
    return status


def _line(error: ZambaCompatError, name: str) -> str:
    if not isinstance(error, WrongUsage):
        return str(error)
    said = str(error)
    return f"{said} See {name} --help" if said.endswith("?") else f"{said.rstrip('.')}; see {name} --help"


def _asks_for_json(words: Sequence[str]) -> bool:
    """Also where the words are wrong; those behind -- and of `run` are another program's."""
    own = words[: words.index("--")] if "--" in words else words
    return "--json" in own and own[0] != "run"


def _complete(commands: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what could be typed next, and end; where argcomplete is not installed, nothing."""
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(commands)


def _keep_quiet(options: argparse.Namespace) -> None:
    """Of other packages' messages, those that tell who runs a command nothing to act on; bars that nobody looks at."""
    from zamba_compat.checkpoint.hub import bars
    from zamba_compat.inference.messages import leave_out

    leave_out()
    bars.show(sys.stderr.isatty() and not getattr(options, "quiet", False))


def _signal() -> int | None:
    """The signal that stopped the command, where a library has made another error of it."""
    signals = sys.modules.get("zamba_compat.checkpoint.writing.signals")
    return None if signals is None else signals.received()


def _explained(error: Exception, options: argparse.Namespace) -> tuple[int, ZambaCompatError]:
    """The exit status for an error, and what, where and the remedy."""
    if isinstance(error, WrongUsage):
        return EXIT_USAGE, error
    if isinstance(error, ZambaCompatError):
        return EXIT_ERROR, error
    if _is_out_of_memory(error):
        hints = ["Close other programs, or use a machine with more"]
        if getattr(options, "load", "4bit") != "4bit":
            hints.append("--load 4bit needs the least")
        if hasattr(options, "dry_run"):
            hints.append("--dry-run says about how much is needed")
        what = "Out of memory; what was there before is unchanged."
        return EXIT_ERROR, ZambaCompatError(what, remedy=f"{'; '.join(hints)}.")
    if isinstance(error, PermissionError):
        where = None if error.filename is None else os.fsdecode(error.filename)
        what = f"It cannot be used: {error.strerror or 'Permission denied'}."
        return EXIT_ERROR, ZambaCompatError(what, where=where, remedy="Change its permissions, or the user's.")
    detail = " ".join(f"{type(error).__name__}: {error}".split())
    if len(detail) > 300:
        detail = detail[:300] + "..."
    return EXIT_BUG, ZambaCompatError(
        f"This is a fault in zamba_compat, not in what it was given ({detail}).",
        remedy="Run it again with --debug to see the traceback, and report it with that.",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Also of torch, whose RuntimeError says it in three ways, and of the system."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and re.search("can't allocate memory|cannot allocate memory|out of memory", str(error), re.IGNORECASE)
        is not None
    )


def _nobody_reads() -> int:
    """End quietly: what is still buffered goes nowhere, so that the interpreter's own flush cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return EXIT_PIPE


if __name__ == "__main__":
    sys.exit(main())
