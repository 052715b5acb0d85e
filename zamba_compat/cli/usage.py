"""Wrong usage, and how help is laid out."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from zamba_compat.errors import ZambaCompatError

# One set of names for dtypes; the short ones are taken too.
DTYPES = ("float32", "bfloat16", "float16")
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_PYTHON_NAMES = re.compile(r"^(max_new_tokens|repetition_penalty|temperature|top_[pk]|min_p|stop|window|stride)\b")


class WrongUsage(ZambaCompatError):
    """Arguments that mean nothing together, or a value that an option does not take."""


@contextmanager
def usage() -> Iterator[None]:
    """Inside, only arguments are looked at: an error about them is wrong usage, in the words of the command line.

    Raises:
        WrongUsage: for every error of this package, and a ValueError.
    """
    try:
        yield
    except ZambaCompatError as error:
        what = _PYTHON_NAMES.sub(lambda found: "--" + found[0].replace("_", "-"), error.what)
        raise WrongUsage(what, where=error.where, remedy=error.remedy) from error
    except ValueError as error:
        raise WrongUsage(f"{error}.") from error


def dtype(word: str) -> str:
    """The long name of a dtype; any other word is left to the choices."""
    return _SHORT.get(word, word)


class Help(argparse.HelpFormatter):
    """Fills paragraphs, and leaves one that has an indented line as it is written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            part if re.search(r"^ ", part, re.MULTILINE) else super(Help, self)._fill_text(part, width, indent)
            for part in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """Raises what is wrong; suggests the commands that are spelled nearly like an unknown one."""

    commands: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if unknown:
            near = [name for name in self.commands if unknown[1] and name.startswith(unknown[1])]
            near = near or difflib.get_close_matches(unknown[1], self.commands, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.commands)}."
            message = f"{unknown[1]!r} is no command; {hint}"
        raise WrongUsage(message if message.endswith(("?", ".")) else f"{message}.")
