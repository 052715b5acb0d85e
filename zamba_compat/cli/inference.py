"""What generate, chat, batch and evaluate share: which model, how it is loaded, how tokens are chosen."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from zamba_compat.cli.usage import dtype, usage
from zamba_compat.errors import ZambaCompatError

if TYPE_CHECKING:
    from zamba_compat.inference.generation import Generation, Sampling
    from zamba_compat.inference.loading import Loading

# As in inference/loading.py and generation.py, which take longer to import than --help may.
LOADS = ("auto", "4bit", "8bit", "bfloat16", "float16", "float32")
STDIN = "standard input"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_loading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--load",
        choices=LOADS,
        type=dtype,
        default="auto",
        help="4bit (NF4, double quantization) and 8bit by bitsandbytes, or a dtype, bf16, fp16 or fp32 for short "
        "(default: as it is stored)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:N (default: a GPU if there is one)")
    add("--seed", type=int, default=0, help="of all random generators (default: %(default)s)")
    add("--json", action="store_true", help="the report as JSON")
    add("-q", "--quiet", action="store_true", help="the result alone: no progress, no figures")


def add_sampling(parser: argparse.ArgumentParser, *, most: int = 256) -> None:
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=most, metavar="N", help="of an answer (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (the default)")
    sampled = "; wants a --temperature above 0"
    add(
        "--top-p", type=float, default=1.0, help=f"sample from the likeliest tokens of this probability in all{sampled}"
    )
    add("--top-k", type=int, default=0, help=f"sample from this many likeliest tokens, 0 from all{sampled}")
    add(
        "--min-p",
        type=float,
        default=0.0,
        help=f"sample from tokens at least this likely beside the likeliest{sampled}",
    )
    add("--stop", action="append", default=[], metavar="TEXT", help="an answer ends before it; may be given again")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: tokens used before get less likely")


def loading(options: argparse.Namespace) -> Loading:
    from zamba_compat.inference.loading import Loading

    with usage():
        return Loading(options.load, options.device, options.seed)


def sampling(options: argparse.Namespace) -> Sampling:
    from zamba_compat.inference.generation import Sampling

    with usage():
        return Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=options.repetition_penalty,
            min_p=options.min_p,
            stop=tuple(options.stop),
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
    sys.stdout.write(shown(text))
    sys.stdout.flush()


def shown(text: str) -> str:
    """Text as a terminal may have it: control characters, which can do anything to one, are written out there."""
    if not sys.stdout.isatty():
        return text
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def figures(answer: Generation) -> str:
    """What an answer cost, in a line."""
    return (
        f"{answer.prompt_tokens} + {answer.new_tokens} tokens ({answer.finish_reason}); first after "
        f"{answer.first_token_seconds:.2f} s, then {answer.tokens_per_second:.1f} tokens/s; "
        f"peak memory {answer.peak_memory / 1e9:.2f} GB"
    )
