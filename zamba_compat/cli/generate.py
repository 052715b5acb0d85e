"""Generate text from a prompt, as it comes.

The prompt is an argument, a file, or standard input (-). At the end, on standard error: tokens per second, the time to
the first token, memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from zamba_compat.cli import inference
from zamba_compat.cli.usage import WrongUsage
from zamba_compat.errors import ZambaCompatError

EXAMPLES = """
  zamba-compat generate CHECKPOINT "import os"
  zamba-compat generate CHECKPOINT --load 4bit --max-new-tokens 64 --temperature 0.7 --top-p 0.9 < prompt.txt
  zamba-compat generate CHECKPOINT --prompt-file prompt.txt --stop "Question:" --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's directory, or OWNER/NAME[@REVISION] on the hub")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="(default, and -: standard input)")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="a UTF-8 text file that holds the prompt")
    inference.add_sampling(parser)
    inference.add_loading(parser)


def run(options: argparse.Namespace) -> int:
    prompt = _prompt(options)
    how, sampling = inference.loading(options), inference.sampling(options)
    from zamba_compat.inference.generation import generate
    from zamba_compat.inference.loading import load

    loaded = load(options.model, how)
    answer = generate(loaded, prompt, sampling, stream=None if options.json else inference.say)
    if options.json:
        print(json.dumps({"model": options.model, "load_seconds": loaded.seconds, **answer.as_dict()}, indent=2))
        return 0
    print(flush=True)
    if not options.quiet:
        print(f"loaded in {loaded.seconds:.1f} s; {inference.figures(answer)}", file=sys.stderr)
    return 0


def _prompt(options: argparse.Namespace) -> str:
    if options.prompt is not None and options.prompt_file is not None:
        raise WrongUsage("There are two prompts.", remedy="Give PROMPT or --prompt-file.")
    if options.prompt not in (None, "-"):
        return inference.text(options.prompt, "PROMPT")
    if options.prompt_file in (None, Path("-")):
        return inference.text(inference.read(lambda stream: stream.read()), inference.STDIN)
    try:
        return str(options.prompt_file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ZambaCompatError(
            f"It cannot be read: {error}.", where=str(options.prompt_file), remedy="Give a UTF-8 text file."
        ) from error
