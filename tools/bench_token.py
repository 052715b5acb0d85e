"""Benchmark of one token on a CPU, by what makes it fast: each step on top of those before it, all in one process.

python tools/bench_token.py [--shape 1.2B] [--lengths 128 2048] [--tokens 14] [--nf4]

The last column is the share of the limit: the bytes of weights that a token's products read, those of a shared block
each time, over the bandwidth of the memory measured in the same run.

The steps take turns token by token, each with a cache of its own after the same prompt, so that drift hits all alike.
Random weights in bfloat16, or in NF4. Without 16-bit instructions: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import torch

import zamba_compat  # noqa: F401
from _bench import work
from _bench.contestants import build
from _bench.speed_report import processor
from _bench.steps import Step, taken
from zamba_compat.cpu import gemv, mixer_decode
from zamba_compat.layout.published import PUBLISHED

STEPS = (
    Step("a mixer's token in one loop", mixer_decode, "between", lambda *given, **more: None),
    Step("with its projections", mixer_decode, "whole", lambda *given, **more: None),
    Step("products of one row in one loop", gemv, "gains", lambda *given: False),
)


def measure(model: Any, length: int, tokens: int) -> list[list[float]]:
    """Seconds per token with none, one, two, ... of STEPS."""
    ids = torch.randint(5, 32000, (1, length))
    caches = [model(ids, use_cache=True, logits_to_keep=1).past_key_values for _ in range(len(STEPS) + 1)]
    found: list[list[float]] = [[] for _ in caches]
    for _ in range(tokens + 3):
        for steps, cache in enumerate(caches):
            with taken(STEPS, steps):
                start = time.perf_counter()
                model(ids[:, -1:], past_key_values=cache, use_cache=True)
                found[steps].append(time.perf_counter() - start)
    return [seconds[3:] for seconds in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=tuple(PUBLISHED), default="1.2B")
    add("--lengths", type=int, nargs="+", default=[128, 2048], help="tokens of the prompts")
    add("--tokens", type=int, default=14, help="to decode with each step after each prompt")
    add("--nf4", action="store_true", help="quantize the model")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = build(PUBLISHED[options.shape].config, torch.bfloat16, "cpu", options.nf4)
    kind = f"{options.shape} in {'NF4' if options.nf4 else 'bfloat16'}"
    print(f"{kind}, torch {version('torch')}; {processor()}. Milliseconds a token, medians of {options.tokens}.\n")
    titles = ["PyTorch's operations", *(f"+ {step.title}" for step in STEPS)]
    print(f"| after | {' | '.join(titles)} | of the limit |\n| ---: |{' ---: |' * (len(titles) + 1)}")
    with torch.inference_mode():
        read = work.products(model, lambda: model(torch.tensor([[5]]))).bytes
        speeds = [work.bandwidth()]
        for length in options.lengths:
            found = [statistics.median(seconds) for seconds in measure(model, length, options.tokens)]
            speeds.append(work.bandwidth())
            cells = [f"{1e3 * median:.0f}" for median in found]
            print(f"| {length} | {' | '.join(cells)} | {read / max(speeds[-2:]) / found[-1]:.0%} |", flush=True)
    print(
        f"\n{read / 1e9:.2f} GB a token; {', '.join(f'{speed / 1e9:.1f}' for speed in speeds)} GB/s before and after."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
