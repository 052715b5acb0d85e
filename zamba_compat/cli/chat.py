"""Talk to a model, through its chat template.

/reset forgets the conversation, /system TEXT sets the system message, /exit or the end of input ends; Ctrl-C stops an
answer, and a second one ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zamba_compat.cli import inference

EXAMPLES = """
  zamba-compat chat INSTRUCT
  zamba-compat chat INSTRUCT --load 4bit --system "Answer briefly." --temperature 0.7 --min-p 0.05
  printf 'first turn\\nsecond turn\\n' | zamba-compat chat INSTRUCT --json
"""

if TYPE_CHECKING:
    from zamba_compat.inference.generation import Generation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's directory, or OWNER/NAME[@REVISION] on the hub")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system message")
    inference.add_sampling(parser, most=512)
    inference.add_loading(parser)


def run(options: argparse.Namespace) -> int:
    how, sampling = inference.loading(options), inference.sampling(options)
    system = inference.text(options.system, "--system")
    from zamba_compat.inference.chatting import HELP, Chat, converse
    from zamba_compat.inference.loading import load

    chat = Chat(load(options.model, how), sampling, system)
    if _is_terminal() and not options.quiet:
        print(HELP, file=sys.stderr)
    answers: list[Generation] = []
    lines = _lines()
    while True:
        try:
            converse(chat, lines, (lambda text: None) if options.json else inference.say, answers)
            break
        except KeyboardInterrupt:  # an answer was stopped; at the prompt it ends the generator, and with it the loop
            print(flush=True)
    if options.json:
        told = [one.as_dict() for one in answers]
        print(json.dumps({"messages": chat.messages, "answers": told, "refused": chat.refused}, indent=2))
    elif answers and not options.quiet:
        print(inference.figures(answers[-1]), file=sys.stderr)
    return 0


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _lines() -> Iterator[str]:
    terminal = _is_terminal()
    while True:
        try:
            line = inference.read(lambda stream: input("> ") if terminal else stream.readline())
            inference.text(line, inference.STDIN)
        except (EOFError, KeyboardInterrupt):
            return
        if not line and not terminal:
            return
        yield line
