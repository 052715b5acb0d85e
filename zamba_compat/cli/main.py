"""zamba-compat COMMAND ...: finds the command's file and runs it; nothing else is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from zamba_compat.errors import ZambaCompatError

# Command -> its module and what it does.
COMMANDS = {
    "doctor": ("doctor", "what is installed, which adapters apply, whether Zamba2 is built right here"),
    "inspect": ("inspect", "what a checkpoint holds and whether it is whole; how far two lie apart"),
    "convert-checkpoint": ("convert", "a checkpoint from any layout to another"),
    "merge": ("merge", "checkpoints by mergekit's configuration, shared blocks understood"),
    "quantize": ("quantize", "a checkpoint with bitsandbytes, without building the model"),
}

EXIT_OK, EXIT_FAULT, EXIT_USAGE, EXIT_ERROR = 0, 1, 2, 3


def parser() -> argparse.ArgumentParser:
    from zamba_compat import __version__

    top = argparse.ArgumentParser(
        prog="zamba-compat",
        description="Zamba2 checkpoints that load, compute and save right in every transformers release.",
        epilog="exit status: 0 done, 1 a fault was found, 2 wrong usage, 3 an error, 130 interrupted",
    )
    top.add_argument("--version", action="version", version=f"zamba-compat {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (file, summary) in COMMANDS.items():
        module = importlib.import_module(f"zamba_compat.cli.{file}")
        sub = commands.add_parser(name, help=summary, description=module.__doc__)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = parser().parse_args(argv)
    try:
        return int(options.run(options))
    except ZambaCompatError as error:
        if options.debug:
            raise
        print(f"zamba-compat {options.command}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
