"""Judge models side by side: perplexity of texts, and questions of arithmetic and logic.

Each model is freed before the next is loaded. Under `accelerate launch` the work is split over the processes, and the
table is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from zamba_compat.cli import inference
from zamba_compat.cli.usage import WrongUsage, usage

EXAMPLES = """
  zamba-compat evaluate BASE TUNED --text held_out.txt
  zamba-compat evaluate CHECKPOINT --questions --show-answers
  zamba-compat evaluate CHECKPOINT --text held_out.txt --ablate no-rope --ablate rank-16 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="checkpoints' directories, or OWNER/NAME[@REVISION] on the hub")
    add("--text", action="append", default=[], type=Path, metavar="FILE", help="a UTF-8 text; may be given again")
    add("--questions", action="store_true", help="ask the package's 20 questions of arithmetic and logic")
    add("--questions-file", type=Path, metavar="FILE", help="ask those of a JSON file")
    add("--window", type=int, default=512, metavar="N", help="tokens per forward (default: %(default)s)")
    add("--stride", type=int, metavar="N", help="tokens from one window to the next (default: the window)")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="of an answer (default: %(default)s)")
    add(
        "--ablate",
        action="append",
        default=[],
        metavar="PART",
        help="judge each model again without: no-rope, rank-N (of the adapters); or with: long (use_long_context)",
    )
    add("--show-answers", action="store_true", help="each question with its answer")
    inference.add_loading(parser)


def run(options: argparse.Namespace) -> int:
    how = inference.loading(options)
    if not (options.text or options.questions or options.questions_file):
        raise WrongUsage("There is nothing to judge by.", remedy="Give a --text, or ask the --questions.")
    from zamba_compat.inference.ablations import check
    from zamba_compat.inference.evaluation import evaluate
    from zamba_compat.inference.generation import Sampling
    from zamba_compat.inference.processes import rank
    from zamba_compat.inference.questions import SET, read_questions
    from zamba_compat.inference.scoring import check_windows
    from zamba_compat.operations.calibrate import read_text

    with usage():
        check_windows(options.window, options.stride)
        Sampling(max_new_tokens=options.max_new_tokens)
        for part in options.ablate:
            check(part)
    asked = read_questions(SET) if options.questions else []
    asked += [] if options.questions_file is None else read_questions(options.questions_file)

    def tell(model: str, what: str) -> None:
        if not options.quiet and sys.stderr.isatty() and not rank():
            print(f"{model}: {what} ...", file=sys.stderr)

    found = evaluate(
        options.models,
        how,
        texts={name: read_text(path) for name, path in _named(options.text).items()},
        questions=asked,
        window=options.window,
        stride=options.stride,
        max_new_tokens=options.max_new_tokens,
        progress=tell,
        ablate=options.ablate,
    )
    if rank():
        return 0
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
        return 0
    print("\n".join(table(found.scores())))
    if options.show_answers:
        for one in found.models:
            for answer in one.answers:
                mark = "right" if answer.correct else "wrong"
                told = f"{one.model}: {mark}, got {answer.got}, wanted {answer.wanted}: {answer.question}"
                print(inference.shown(told))
    if not options.quiet:
        for one in found.models:
            print(
                f"{one.model}: loaded in {one.load_seconds:.1f} s, judged in {one.seconds:.1f} s, "
                f"{one.bytes / 1e9:.3f} GB of weights, peak memory {one.peak_memory / 1e9:.2f} GB",
                file=sys.stderr,
            )
    return 0


def _named(paths: list[Path]) -> dict[str, Path]:
    """Texts by their file's name; by the path as given where two have one name."""
    names = [path.name for path in paths]
    return {path.name if names.count(path.name) == 1 else str(path): path for path in paths}


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows in columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
