"""Answer a JSONL file of prompts into a JSONL file, in order; an interrupted run goes on where it stopped.

Each line of IN is {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}, with an "id" if wanted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from zamba_compat.cli import inference
from zamba_compat.errors import ZambaCompatError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's directory, or a hub id in the local cache")
    parser.add_argument("source", type=Path, metavar="IN", help="a JSONL file of prompts")
    parser.add_argument("output", type=Path, metavar="OUT", help="the JSONL file of answers; OUT.state.json beside it")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="prompts at once (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew instead of going on")
    inference.add_sampling(parser)
    inference.add_loading(parser)


def run(options: argparse.Namespace) -> int:
    how, sampling = inference.loading(options), inference.sampling(options)
    if options.batch_size < 1:
        raise ZambaCompatError(f"The batch size is {options.batch_size}.", remedy="Take 1 or more.")
    from tqdm import tqdm  # type: ignore[import-untyped]

    from zamba_compat.inference.batching import run_batch
    from zamba_compat.inference.fingerprint import fingerprint
    from zamba_compat.inference.loading import load

    silent = options.quiet or not sys.stderr.isatty()
    with tqdm(unit="answers", disable=silent, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = run_batch(
            options.source,
            options.output,
            lambda: load(options.model, how),
            sampling,
            identity={
                "model": options.model,
                "model_files": fingerprint(options.model),
                "load": options.load,
                "seed": options.seed,
            },
            batch_size=options.batch_size,
            overwrite=options.overwrite,
            progress=show,
        )
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    elif not options.quiet:
        print(
            f"{report.output}: {report.answered} answers written, {report.found} were there; "
            f"{report.new_tokens} tokens in {report.seconds:.1f} s; peak memory {report.peak_memory / 1e9:.2f} GB"
        )
    return 0
