"""Benchmark of inference: with the import, in NF4, stock transformers, and a Llama of as many parameters.

    python tools/bench_inference.py [--quick] [--lengths 128 1024] [--contestants import nf4 llama stock] [--rounds 1]
    python tools/bench_inference.py --lengths 128 1024 4096 16384 --plot docs/speed.svg --write docs/speed.md
    python tools/bench_inference.py --from docs/speed.json --plot docs/speed.svg

Time to the first token, seconds per further token, the peak of memory above what the model holds, and the cache's
bytes, each contestant in a process of its own (stock and Llama never import zamba_compat); rounds alternate between
them, so that drift hits all. Prompts beyond 4,096 tokens use use_long_context. Ablations of the technical report are
contestants, too: no-rope, rank-N (adapters of rank N), long (use_long_context at every length).

ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 shows a processor without 16-bit instructions, ONEDNN_MAX_CPU_ISA=
AVX512_CORE one with AVX-512 and without AVX512-BF16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _bench import in_process
from _bench.contestants import llama_config
from _bench.speed_report import draw, report
from zamba_compat.inference.ablations import rank_of
from zamba_compat.published import PUBLISHED

RUN = "from _bench.first_token import main; main()"
USUAL = ("import", "nf4", "llama", "stock")
TRAINED_UP_TO = 4096


def contestant(name: str) -> str:
    """Check a contestant's name."""
    if name in (*USUAL, "no-rope", "long") or rank_of(name):
        return name
    raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(USUAL)}, no-rope, rank-N, long")


def limit(text: str) -> tuple[str, int]:
    """NAME=N as a contestant's name and a number."""
    name, _, number = text.partition("=")
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N")
    return contestant(name), int(number)


def asked_of(name: str, shape: str, lengths: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What `_bench.first_token` is to measure: one process, or two where the longer prompts need another config."""
    published = PUBLISHED[shape]
    config: dict[str, Any] = published.config
    if name == "llama":
        config = llama_config(config, published.parameters)
    elif name == "no-rope":
        config = {**config, "use_mem_rope": False}
    elif rank := rank_of(name):
        config = {**config, "adapter_rank": rank}
    most = dict([("stock", 1024), *options.up_to]).get(name)
    lengths = [length for length in lengths if most is None or length <= most]
    longer = [] if name == "llama" else [length for length in lengths if length > TRAINED_UP_TO or name == "long"]
    shorter = [length for length in lengths if length not in longer]
    parts = [(shorter, config), (longer, {**config, "use_long_context": True})]
    return [
        {
            "config": content,
            "import": name not in ("llama", "stock"),
            "nf4": name == "nf4",
            "device": options.device,
            "lengths": some,
            "tokens": options.tokens,
            "seconds": options.seconds,
        }
        for some, content in parts
        if some
    ]


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every contestant's runs, one per round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contestants}
    for _ in range(options.rounds):
        for name in options.contestants:
            whole: dict[str, Any] = {"lengths": {}}
            for asked in asked_of(name, options.shape, options.lengths, options):
                run = in_process(RUN, json.dumps(asked), env={"PYTHONPATH": "tools"})
                whole = {**run, "lengths": {**whole["lengths"], **run["lengths"]}}
            found[name].append(whole)
            print(f"{name}: {whole['lengths']}", file=sys.stderr, flush=True)
    return found


def medians(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per contestant the medians over the rounds, by length."""
    result = {}
    for name, runs in found.items():
        by_length = {
            int(length): {what: statistics.median(run["lengths"][length][what] for run in runs) for what in figures}
            for length, figures in runs[0]["lengths"].items()
        }
        result[name] = {**runs[0], "lengths": by_length}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="128 tokens, 4 to decode, one round: two minutes")
    add("--shape", choices=tuple(PUBLISHED), default="1.2B")
    add("--device", default="cpu")
    add("--lengths", type=int, nargs="+", default=[128, 1024], help="tokens of the prompts")
    add("--contestants", type=contestant, nargs="+", default=list(USUAL))
    add("--up-to", type=limit, action="append", default=[], metavar="NAME=N", help="a contestant's longest prompt")
    add("--rounds", type=int, default=1)
    add("--tokens", type=int, default=12, help="to decode after each prompt")
    add("--seconds", type=float, default=30, help="after which no further token is decoded")
    add("--plot", type=Path, metavar="FILE", help="draw the curves (needs matplotlib)")
    add("--write", type=Path, metavar="FILE", help="write the tables")
    add("--json", action="store_true", help="print every figure")
    add("--from", dest="again", type=Path, metavar="FILE", help="measure nothing: draw what --json has printed")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.tokens, options.rounds = [128], 4, 1

    if options.again:
        if not options.plot:
            parser.error("--from wants a --plot")
        draw(medians(json.loads(options.again.read_text(encoding="utf-8"))), options.plot)
        return 0
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    figures = medians(found)
    where = f"transformers {version('transformers')}, torch {version('torch')}, {options.device}, {options.shape}"
    lines = report(figures, f"{where}, medians of {options.rounds} rounds")
    if not options.json:
        print("\n".join(lines))
    if options.write:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.plot:
        draw(figures, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
