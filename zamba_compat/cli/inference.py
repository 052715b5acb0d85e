"""What generate, chat, batch and evaluate share: which model, how it is loaded, how tokens are chosen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from zamba_compat.errors import ZambaCompatError

if TYPE_CHECKING:
    from zamba_compat.inference.generation import Generation, Sampling
    from zamba_compat.inference.loading import Loading

# As in inference/loading.py and generation.py, which take longer to import than --help may.
LOADS = ("auto", "4bit", "8bit", "bf16", "fp16", "fp32")
STDIN = "standard input"


def add_loading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--load",
        choices=LOADS,
        default="auto",
        help="4bit (NF4, double quantization) and 8bit by bitsandbytes, or a dtype (default: as it is stored)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:N (default: a GPU if there is one)")
    add("--seed", type=int, default=0, help="of all random generators (default: %(default)s)")
    add("--json", action="store_true", help="the report as JSON")
    add("-q", "--quiet", action="store_true", help="the result alone: no progress, no figures")


def add_sampling(parser: argparse.ArgumentParser, *, most: int = 256) -> None:
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=most, metavar="N", help="of an answer (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (the default)")
    add("--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this probability together")
    add("--top-k", type=int, default=0, help="sample from this many likeliest tokens; 0: from all")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: tokens used before get less likely")


def loading(options: argparse.Namespace) -> Loading:
    from zamba_compat.inference.loading import Loading

    return Loading(options.load, options.device, options.seed)


def sampling(options: argparse.Namespace) -> Sampling:
    from zamba_compat.inference.generation import Sampling

    return Sampling(
        options.max_new_tokens, options.temperature, options.top_p, options.top_k, options.repetition_penalty
    )


def read(how: Callable[[TextIO], str]) -> str:
    """Text from standard input. Raises ZambaCompatError where it is closed, or no text in the terminal's encoding."""
    if sys.stdin is None:
        raise ZambaCompatError("It is closed.", where=STDIN, remedy="Give the prompt as an argument or in a file.")
    try:
        return how(sys.stdin)
    except (OSError, UnicodeDecodeError) as error:
        raise ZambaCompatError(f"It cannot be read: {error}.", where=STDIN, remedy="Give UTF-8 text.") from error


def text(found: str, where: str) -> str:
    """The same text. Raises ZambaCompatError where Python has kept bytes in it that are none."""
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise ZambaCompatError("It holds bytes that are no UTF-8.", where=where, remedy="Give UTF-8 text.") from error
    return found


def say(text: str) -> None:
    """A piece of an answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def figures(answer: Generation) -> str:
    """What an answer cost, in a line."""
    return (
        f"{answer.prompt_tokens} + {answer.new_tokens} tokens ({answer.finish_reason}); first after "
        f"{answer.first_token_seconds:.2f} s, then {answer.tokens_per_second:.1f} tokens/s; "
        f"peak memory {answer.peak_memory / 1e9:.2f} GB"
    )
