"""Benchmark of inference: with the import, in NF4, stock transformers, and a Llama of as many parameters.

    python tools/bench_inference.py [--quick] [--lengths 128 1024] [--contestants import nf4 llama stock] [--rounds 1]
    python tools/bench_inference.py --lengths 128 1024 4096 16384 --plot build/speed.svg --write build/speed.md
    python tools/bench_inference.py --from docs/speed.json --plot docs/speed.svg
    python tools/bench_inference.py --device cuda --lengths 1024 4096 16384
    python tools/bench_inference.py --config tests/fixtures/tiny/base/config.json --lengths 32 --rows 2 4 --most 8

Time to the first token, seconds per further token, the peak of memory above what the model holds, and the cache's
bytes, each contestant in a process of its own (stock and Llama never import zamba_compat); rounds alternate between
them, so that drift hits all. Prompts beyond 4,096 tokens use use_long_context. Ablations of the technical report are
contestants, too: no-rope, rank-N (adapters of rank N), long (use_long_context at every length). Which fused kernels a
prompt and a token called is seen while they run. Of the first length several prompts are run at once, too (--rows), and
as many as fit (--most): both by default on a GPU only.

ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 shows a processor without 16-bit instructions, ONEDNN_MAX_CPU_ISA=
AVX512_CORE one with AVX-512 and without AVX512-BF16.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _bench import in_process
from _bench.contestants import llama_config
from _bench.speed_report import draw, report
from make_checkpoint import shapes
from zamba_compat.inference.ablations import rank_of
from zamba_compat.layout.published import PUBLISHED

RUN = "from _bench.first_token import main; main()"
USUAL = ("import", "nf4", "llama", "stock")
TRAINED_UP_TO = 4096
ON_A_GPU = {"rows": [8, 32], "most": 2048}


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


def model_of(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The config.json's content of the Zamba2 that is measured, and its parameters."""
    if options.config is None:
        return PUBLISHED[options.shape].config, PUBLISHED[options.shape].parameters
    config: dict[str, Any] = json.loads(options.config.read_text(encoding="utf-8"))
    return config, sum(math.prod(shape) for shape in shapes(config).values())


def asked_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What `_bench.first_token` is to measure: one process, or two where the longer prompts need another config."""
    config, parameters = model_of(options)
    if name == "llama":
        config = llama_config(config, parameters)
    elif name == "no-rope":
        config = {**config, "use_mem_rope": False}
    elif rank := rank_of(name):
        config = {**config, "adapter_rank": rank}
    slow = [] if options.device.startswith("cuda") else [("stock", 1024)]
    most = dict([*slow, *options.up_to]).get(name)
    lengths = [length for length in options.lengths if most is None or length <= most]
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
            "rows": options.rows if some[0] == options.lengths[0] else [],
            "most": options.most if some[0] == options.lengths[0] else 0,
        }
        for some, content in parts
        if some
    ]


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every contestant's runs, one per round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contestants}
    for _ in range(options.rounds):
        for name in options.contestants:
            whole: dict[str, Any] = {"lengths": {}, "rows": {}}
            for asked in asked_of(name, options):
                run = in_process(RUN, json.dumps(asked), env={"PYTHONPATH": "tools"})
                both = {what: {**whole[what], **run[what]} for what in ("lengths", "rows")}
                whole = {**run, **whole, **both}
            found[name].append(whole)
            print(f"{name}: {whole['lengths']} {whole['rows']}", file=sys.stderr, flush=True)
    return found


def medians(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per contestant the medians over the rounds, by length and by rows; what did not fit once is left out."""
    result = {}
    for name, runs in found.items():
        by = {
            kind: {
                int(key): {what: statistics.median(run[kind][key][what] for run in runs) for what in figures}
                for key, figures in runs[0].get(kind, {}).items()
                if all(key in run[kind] for run in runs)
            }
            for kind in ("lengths", "rows")
        }
        result[name] = {**runs[0], **by}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="128 tokens, 4 to decode, one round: two minutes")
    add("--shape", choices=tuple(PUBLISHED), default="1.2B")
    add("--config", type=Path, metavar="FILE", help="another Zamba2's config.json, instead of a published shape")
    add("--device", default="cpu")
    add("--lengths", type=int, nargs="+", default=[128, 1024], help="tokens of the prompts")
    add("--rows", type=int, nargs="*", help="prompts of the first length to run at once")
    add("--most", type=int, help="how many of these to try, to find the most that fit; 0 for not to look")
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
    many = ON_A_GPU if options.device.startswith("cuda") else {"rows": [], "most": 0}
    options.rows = many["rows"] if options.rows is None else options.rows
    options.most = many["most"] if options.most is None else options.most

    if options.again:
        if not options.plot:
            parser.error("--from wants a --plot")
        draw(medians(json.loads(options.again.read_text(encoding="utf-8"))), options.plot)
        return 0
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    figures = medians(found)
    where = f"transformers {version('transformers')}, torch {version('torch')}, {options.device}"
    where += f", {options.config or options.shape}"
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
