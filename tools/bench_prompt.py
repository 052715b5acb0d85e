"""Benchmark of a prompt on a CPU, by what makes it fast: each step on top of those before it, all in one process.

python tools/bench_prompt.py [--shape 1.2B] [--lengths 128 1024] [--rounds 5] [--nf4] [--products | --mixers]

The last column is the share of the limit: the multiply-adds of the linear layers over those of PyTorch's product of
square bfloat16 matrices, measured in the same run.

The steps take turns prompt by prompt, so that drift hits all alike. Random weights in bfloat16, or in NF4. --products:
instead, single products by rows and weights: the one with tiles beside PyTorch's, where there are tiles; with --nf4,
bitsandbytes' kernel, where it has one, beside the loops over weights as they are. --mixers: instead, what a mixer does
between its projections, by each loop in C that runs here. Without 16-bit instructions: ONEDNN_MAX_CPU_ISA=AVX2
ATEN_CPU_CAPABILITY=avx2; with those of AVX-512 alone: ONEDNN_MAX_CPU_ISA=AVX512_CORE.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch

import zamba_compat  # noqa: F401
from _bench import work
from _bench.contestants import build
from _bench.speed_report import processor
from _bench.steps import Step, taken
from zamba_compat.cpu import amx, bnb_packed, mixer_prefill
from zamba_compat.cpu import nf4 as four_bit
from zamba_compat.cpu.gemv import has_tiles
from zamba_compat.cpu.native import quantized, scan
from zamba_compat.layout.published import PUBLISHED

IN_BFLOAT16 = (
    Step("a mixer's part in one loop", mixer_prefill, "run", lambda *given, **more: None),
    Step("products with tiles", amx, "_takes", lambda *given: False),
    Step("a mixer in chunks", mixer_prefill, "_chunks", lambda: None),
)
IN_NF4 = (
    IN_BFLOAT16[0],
    Step("4-bit weights by loops in C", four_bit, "product", lambda *given: None),
    *IN_BFLOAT16[1:],
)
ROWS = (2, 16, 32, 64, 128, 512, 1024)
ROWS_OF_4_BITS = (1, 2, 4, 16, 32, 64, 128)
WEIGHTS = ((8512, 2048), (2048, 4096), (16384, 2048), (2048, 8192))  # of 1.2B
_BYTES = 6 * 10**8  # of weights that take turns, so that none is in a cache


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def prompts(model: Any, steps: tuple[Step, ...], length: int, rounds: int) -> list[float]:
    """Median seconds with none, one, two, ... of the steps."""
    ids = torch.randint(5, 32000, (1, length))
    found: list[list[float]] = [[] for _ in range(len(steps) + 1)]
    for _ in range(rounds + 1):
        for count, times in enumerate(found):
            with taken(steps, count):
                times.append(seconds(lambda: model(ids, use_cache=True, logits_to_keep=1)))
    return [statistics.median(times[1:]) for times in found]


def milliseconds(ways: Sequence[Callable[[Any], Any]], weights: Sequence[Any], rounds: int) -> list[float]:
    """Medians of one product in each way, which take turns."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, times in zip(ways, found, strict=True):
            times.append(seconds(lambda way=way: [way(weight) for weight in weights]) / len(weights))  # type: ignore[misc]
    return [1e3 * statistics.median(times[1:]) for times in found]


def products(rows: int, shape: tuple[int, int], rounds: int) -> list[float]:
    """By PyTorch, and with tiles."""
    weights = [torch.randn(shape).bfloat16() for _ in range(max(2, _BYTES // (2 * shape[0] * shape[1])))]
    x = torch.randn(rows, shape[1]).bfloat16()
    out = x.new_empty(rows, shape[0])
    ways = (lambda weight: torch.mm(x, weight.T, out=out), lambda weight: amx.product(x, weight, out=out))
    return milliseconds(ways, weights, rounds)


IN_4_BITS = "bitsandbytes' kernel / by the codes / written out"


def in_4_bits(rows: int, shape: tuple[int, int], rounds: int) -> list[float]:
    """As IN_4_BITS says; the first only where bitsandbytes has a kernel."""
    from bitsandbytes.functional import has_avx512bf16, quantize_4bit

    data, state = quantize_4bit(torch.randn(shape), quant_type="nf4", compress_statistics=True, blocksize=64)
    packed = bnb_packed.packed_bytes(data.reshape(shape[0], -1))
    weights = [(data.clone(), packed.clone()) for _ in range(max(2, _BYTES // (8 * packed.numel())))]
    x, absmax = torch.randn(rows, shape[1]).bfloat16(), bnb_packed.kernel_absmax(state)

    def kernel(weight: Any) -> None:
        size = [len(weight[1]), shape[1]]
        torch.ops.bitsandbytes.gemv_4bit.default(x, weight[1], size, absmax, state.code, state.blocksize)

    def as_they_are(most: int) -> Callable[[Any], None]:
        def way(weight: Any) -> None:
            with taken((Step("", four_bit, "most_tokens", lambda *given: most),), 0):
                four_bit.product(x, weight[0], state, None)

        return way

    theirs = (kernel,) if has_avx512bf16() else ()
    return milliseconds((*theirs, as_they_are(rows), as_they_are(0)), weights, rounds)


def print_products(nf4: bool, about: str, rounds: int) -> None:
    if nf4:
        there, ways = quantized.loops() is not None, IN_4_BITS
    else:
        there, ways = has_tiles() and amx.loops() is not None, "PyTorch's product / with tiles"
    if not there:
        print("nothing to compare here")
        return
    print(f"Milliseconds: {ways}; {about}\n")
    print(f"| rows | {' | '.join(f'{rows} x {columns}' for rows, columns in WEIGHTS)} |")
    print(f"| ---: |{' ---: |' * len(WEIGHTS)}")
    for rows in ROWS_OF_4_BITS if nf4 else ROWS:
        found = ((in_4_bits if nf4 else products)(rows, shape, rounds) for shape in WEIGHTS)
        print(f"| {rows} | {' | '.join(' / '.join(f'{ms:.1f}' for ms in cell) for cell in found)} |", flush=True)


def sequence(config: dict[str, Any], length: int) -> tuple[scan.Weights, dict[str, Any]]:
    """Weights of a mixer and what `scan.Loop.run` is given, but for its room: a prompt in bfloat16."""
    heads, d_state, groups = config["n_mamba_heads"], config["mamba_d_state"], config["mamba_ngroups"]
    inner = config["mamba_expand"] * config["hidden_size"]
    channels = inner + 2 * groups * d_state
    weights = scan.Weights(
        *(torch.randn(config["mamba_d_conv"], channels), torch.randn(channels), -torch.rand(heads), torch.ones(heads)),
        *(torch.ones(inner), inner // groups, 1e-5),
    )
    gate, xbc = torch.randn(length, inner + channels).bfloat16().split([inner, channels], 1)
    given = {"xbc": xbc, "gate": gate, "dt": 0.1 * torch.rand(length, heads), "groups": groups, "earlier": None}
    state = torch.zeros(heads, inner // heads, d_state)
    return weights, given | {"state": state, "goes_on": False, "out": torch.empty_like(gate).contiguous()}


def print_mixers(shape: str, lengths: Sequence[int], about: str, rounds: int) -> None:
    loops = {"token by token": scan.loop(), "in chunks, AVX512-BF16": scan.vectors(), "with tiles": scan.chunks()}
    there = {name: loop for name, loop in loops.items() if loop is not None}
    print(f"Microseconds per token of a mixer of {shape} between its projections; {about}\n")
    print(f"| tokens | {' | '.join(there)} |\n| ---: |{' ---: |' * len(there)}")
    for length in lengths:
        weights, given = sequence(PUBLISHED[shape].config, length)

        def way(
            loop: scan.Loop, weights: scan.Weights = weights, given: dict[str, Any] = given
        ) -> Callable[[Any], Any]:
            room = torch.empty(loop.room(weights, given["groups"], given["state"]))
            return lambda _: loop.run(weights, room=room, **given)

        found = milliseconds([way(loop) for loop in there.values()], [None], rounds)
        print(f"| {length} | {' | '.join(f'{1e3 * ms / length:.1f}' for ms in found)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=tuple(PUBLISHED), default="1.2B")
    add("--lengths", type=int, nargs="+", default=[128, 1024], help="tokens of the prompts")
    add("--rounds", type=int, default=5)
    add("--nf4", action="store_true", help="quantize the model")
    add("--products", action="store_true", help="single products instead of prompts")
    add("--mixers", action="store_true", help="mixers between their projections instead of prompts")
    options = parser.parse_args()

    torch.manual_seed(0)
    about = f"torch {version('torch')}; {processor()}; medians of {options.rounds}."
    if options.products:
        with torch.inference_mode():
            print_products(options.nf4, about, options.rounds)
        return 0
    if options.mixers:
        with torch.inference_mode():
            print_mixers(options.shape, options.lengths, about, options.rounds)
        return 0
    model = build(PUBLISHED[options.shape].config, torch.bfloat16, "cpu", options.nf4)  # made within, PyTorch is slower
    with torch.inference_mode():
        steps = IN_NF4 if options.nf4 else IN_BFLOAT16
        print(f"Seconds to the first token, {options.shape} in {'NF4' if options.nf4 else 'bfloat16'}, {about}\n")
        titles = ["PyTorch's operations", *(f"+ {step.title}" for step in steps), "of the limit"]
        print(f"| tokens | {' | '.join(titles)} |")
        print(f"| ---: |{' ---: |' * (len(steps) + 2)}")
        peaks = [work.gemm_peak(torch.bfloat16)]
        for length in options.lengths:
            ids = torch.randint(5, 32000, (1, length))
            needed = work.products(model, lambda ids=ids: model(ids, logits_to_keep=1)).multiply_adds  # type: ignore[misc]
            found = prompts(model, steps, length, options.rounds)
            peaks.append(work.gemm_peak(torch.bfloat16))
            cells = [f"{median:.2f}" for median in found]
            print(f"| {length} | {' | '.join(cells)} | {needed / max(peaks[-2:]) / found[-1]:.0%} |", flush=True)
        print(f"\n{', '.join(f'{peak / 1e12:.2f}' for peak in peaks)} T multiply-adds/s before and after.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
