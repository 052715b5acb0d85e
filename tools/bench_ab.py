"""A/B of one piece of the CPU engine: whole models with and without it, by turns in one process.

    python tools/bench_ab.py gemv [--nf4] [--lengths 128 1024] [--rounds 5] [--tokens 14]
    python tools/bench_ab.py --all

A round is the prompt and then `--tokens` tokens, once with every piece and once with all but this one; which of them
comes first alternates. A piece's gain is the median over rounds of (without / with - 1); behind it are the quartiles.
Random weights. Without 16-bit instructions: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2; with those of AVX-512
alone: ONEDNN_MAX_CPU_ISA=AVX512_CORE.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch

import zamba_compat  # noqa: F401
from _bench.contestants import build
from _bench.speed_report import processor
from zamba_compat.cpu import (
    amx,
    blocking,
    folded,
    gemv,
    mixer_decode,
    mixer_prefill,
    nf4,
    upcast,
)
from zamba_compat.layout.published import PUBLISHED


def nothing(*given: Any, **more: Any) -> None:
    return None


def never(*given: Any, **more: Any) -> bool:
    return False


NEVER = 1 << 40  # rows
# Piece -> what it is switched off by: (owner, name, instead).
PIECES: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "gemv": ((gemv, "product", nothing),),
    "mixer_decode_projections": ((mixer_decode, "whole", nothing),),
    "mixer_decode": ((mixer_decode, "whole", nothing), (mixer_decode, "between", nothing)),
    "mixer_prefill": ((mixer_prefill, "run", nothing),),
    "mixer_chunks": ((mixer_prefill, "_chunks", nothing),),
    "amx": ((amx, "_takes", never),),
    "upcast": ((upcast, "FEWEST", NEVER),),
    "head_rows": ((folded, "one_matrix", nothing),),
    "blocking": ((blocking, "FEWEST", NEVER),),
    "nf4": ((nf4, "product", nothing), (nf4, "matrix_of", nothing)),
}


@contextmanager
def without(piece: str) -> Iterator[None]:
    """The whole engine but this piece."""
    with ExitStack() as stack:
        for owner, name, instead in PIECES[piece]:
            stack.enter_context(mock.patch.object(owner, name, instead))
        yield


def once(model: Any, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Seconds of a prompt [1, length], and of each token after it."""
    start = time.perf_counter()
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    prefill = time.perf_counter() - start
    found = []
    for _ in range(tokens):
        start = time.perf_counter()
        model(ids[:, -1:], past_key_values=cache, use_cache=True)
        found.append(time.perf_counter() - start)
    return prefill, statistics.median(found)


def gains(model: Any, piece: str, length: int, rounds: int, tokens: int) -> list[list[float]]:
    """Of the prompt and of a token: without / with - 1, for each round."""
    ids = torch.randint(5, 32000, (1, length))
    found: list[list[float]] = [[], []]
    for number in range(-1, rounds):  # the first warms up
        times = {}
        for on in (True, False) if number % 2 else (False, True):
            with ExitStack() as stack:
                if not on:
                    stack.enter_context(without(piece))
                times[on] = once(model, ids, tokens)
        if number >= 0:
            for gain, off, on_ in zip(found, times[False], times[True], strict=True):
                gain.append(off / on_ - 1)
    return found


def cell(values: Sequence[float]) -> str:
    """Median and quartiles, in percent."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return f"{middle:+.0%} ({low:+.0%} to {high:+.0%})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pieces", nargs="*", metavar="PIECE", help=", ".join(PIECES))
    add("--all", action="store_true", help="every piece")
    add("--shape", choices=tuple(PUBLISHED), default="1.2B")
    add("--lengths", type=int, nargs="+", default=[128, 1024], help="tokens of the prompts")
    add("--rounds", type=int, default=5)
    add("--tokens", type=int, default=14, help="after each prompt")
    add("--nf4", action="store_true", help="quantize the model")
    options = parser.parse_args()
    pieces = tuple(PIECES) if options.all else tuple(options.pieces)
    unknown = [piece for piece in pieces if piece not in PIECES]
    if unknown or not pieces:
        parser.error(f"no such piece: {', '.join(unknown)}" if unknown else "name a piece, or give --all")

    torch.manual_seed(0)
    model = build(PUBLISHED[options.shape].config, torch.bfloat16, "cpu", options.nf4)
    kind = f"{options.shape} in {'NF4' if options.nf4 else 'bfloat16'}"
    print(f"Gain of a piece, {kind}, torch {version('torch')}; {processor()}; {options.rounds} rounds.\n")
    titles = [f"{what}, {length}" for length in options.lengths for what in ("prefill", "decode")]
    print(f"| piece | {' | '.join(titles)} |\n| --- |{' ---: |' * len(titles)}")
    with torch.inference_mode():
        for piece in pieces:
            found = [
                values
                for length in options.lengths
                for values in gains(model, piece, length, options.rounds, options.tokens)
            ]
            print(f"| {piece} | {' | '.join(map(cell, found))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
