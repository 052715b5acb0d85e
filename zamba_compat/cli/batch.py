"""Answer a JSONL file of prompts into a JSONL file, in order; an interrupted run goes on where it stopped.

IN and OUT may be -, the standard streams; then, and where OUT is a pipe, nothing is gone on with.

Each line of IN is {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}, with an "id" if wanted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zamba_compat.cli import inference
from zamba_compat.cli.counts import counted
from zamba_compat.cli.usage import WrongUsage
from zamba_compat.errors import ZambaCompatError

if TYPE_CHECKING:
    from zamba_compat.inference.batching import BatchReport
    from zamba_compat.inference.generation import Sampling
    from zamba_compat.inference.loading import Loading

EXAMPLES = """
  zamba-compat batch CHECKPOINT prompts.jsonl answers.jsonl --batch-size 8
  zamba-compat batch CHECKPOINT - - --stop "Question:" < prompts.jsonl > answers.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's directory, or OWNER/NAME[@REVISION] on the hub")
    parser.add_argument("source", type=Path, metavar="IN", help="a JSONL file of prompts; -: standard input")
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUT",
        help="the JSONL file of answers, OUT.state.json beside it; -: standard output",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="prompts at once (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew instead of going on")
    inference.add_sampling(parser)
    inference.add_loading(parser)


def run(options: argparse.Namespace) -> int:
    from zamba_compat.inference.streams import is_stdout, is_stream

    options.report = sys.stderr if is_stdout(options.output) else sys.stdout
    how, sampling = inference.loading(options), inference.sampling(options)
    if options.batch_size < 1:
        raise WrongUsage(f"--batch-size is {options.batch_size}, not 1 or more.", remedy="Give another value.")
    try:
        report = _run(options, how, sampling)
    except KeyboardInterrupt as stopped:
        if is_stream(options.output):
            raise
        raise KeyboardInterrupt(_kept(options.output)) from stopped
    if options.json:
        print(json.dumps(report.as_dict(), indent=2), file=options.report)
    elif not options.quiet:
        print(
            f"{report.output}: {counted(report.answered, 'answer')} written, {report.found} were there; "
            f"{counted(report.new_tokens, 'token')} in {report.seconds:.1f} s; "
            f"peak memory {report.peak_memory / 1e9:.2f} GB",
            file=options.report,
        )
    return 0


def _run(options: argparse.Namespace, how: Loading, sampling: Sampling) -> BatchReport:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from zamba_compat.checkpoint.hub.names import on_hub
    from zamba_compat.inference.batching import run_batch
    from zamba_compat.inference.fingerprint import fingerprint
    from zamba_compat.inference.loading import directory_of, load

    # Once: where the hub fails, the network was waited for. What is no model here is told after a missing IN.
    directory = options.model if on_hub(options.model) is None else directory_of(options.model)
    silent = options.quiet or not sys.stderr.isatty()
    with tqdm(unit="answers", disable=silent, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return run_batch(
            options.source,
            options.output,
            lambda: load(options.model, how),
            sampling,
            identity={
                "model": options.model,
                "model_files": fingerprint(directory),
                "load": options.load,
                "seed": options.seed,
            },
            batch_size=options.batch_size,
            overwrite=options.overwrite,
            progress=show,
        )


def _kept(output: Path) -> ZambaCompatError:
    """What an interrupted run leaves; a line that is not whole is removed by the next one."""
    try:
        with open(output, "rb") as file:
            count = sum(line.endswith(b"\n") for line in file)
    except OSError:  # there is no output yet
        count = 0
    what = f"Stopped by SIGINT; {counted(count, 'answer')} {'is' if count == 1 else 'are'} kept."
    return ZambaCompatError(what, where=str(output), remedy="The same command again goes on from there.")
