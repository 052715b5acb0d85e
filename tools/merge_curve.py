"""Perplexity of the merged tiny pair over t, the parents at its ends, for three layouts of the parents.

    python tools/merge_curve.py [--points 11] [--method slerp] [--plot curve.svg]

hub x hub, expanded x hub and expanded x expanded must give the same tensors at every t; exit status 1 where they do
not, where an end is not its parent, or where the curve leaves what an interpolation may do: at every t each text's
perplexity lies below the worse parent's, and on each text it moves from the one parent's to the other's without a turn
larger than a tenth of the way.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import zamba_compat
from _tiny.perplexity import TEXTS, TINY, on_both_texts
from zamba_compat.operations.convert import Options, convert
from zamba_compat.operations.merge import merge

LAYOUTS = (("hub", "hub"), ("expanded", "hub"), ("expanded", "expanded"))
State = Mapping[str, Tensor]


def configuration(method: str, parents: Sequence[Path], t: float) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": str(parents[0]),
        "models": [{"model": str(parent)} for parent in parents],
        "parameters": {"t": t},
        "dtype": "bfloat16",
    }


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def is_interpolation(values: Sequence[float]) -> bool:
    """Whether a curve runs from its first value to its last: turns are at most a tenth of the way."""
    way = values[-1] - values[0]
    back = sum(max(0.0, -(after - before) * (1 if way > 0 else -1)) for before, after in pairwise(values))
    return back <= 0.1 * abs(way) and max(values) <= max(values[0], values[-1])


def draw(points: Sequence[float], curves: Sequence[Sequence[float]], method: str, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for text, curve in zip(TEXTS, curves, strict=True):
        axes.plot(points, curve, marker="o", label=f"on {text}'s text")
    axes.set(xlabel="t (0 is base, 1 is tuned)", ylabel="perplexity per byte", title=f"{method} of the tiny pair")
    figure.legend(loc="outside right upper")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=11, help="values of t from 0 to 1 (default: %(default)s)")
    parser.add_argument("--method", default="slerp", choices=("slerp", "slerp_rowwise"))
    parser.add_argument("--plot", type=Path, help="draw the curve (needs matplotlib)")
    options = parser.parse_args()
    zamba_compat.install()
    torch.set_num_threads(1)  # the models are too small to gain from more
    logging.disable(logging.WARNING)
    points = torch.linspace(0, 1, options.points, dtype=torch.float64).tolist()
    curves: list[list[float]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name in TEXTS:
            convert(TINY / name, work / f"{name}-hub")
            convert(TINY / name, work / f"{name}-expanded", Options(layout="expanded"))
        print("| t | on base's text | on tuned's | tensors of the three layouts |\n| ---: | ---: | ---: | --- |")
        for t in points:
            results = []
            for layouts in LAYOUTS:
                parents = [work / f"{name}-{layout}" for name, layout in zip(TEXTS, layouts, strict=True)]
                out = work / f"{'-'.join(layouts)}-{t:.4f}"
                merge(configuration(options.method, parents, t), out)
                results.append(load_file(out / "model.safetensors"))
            alike = all(equal(results[0], other) for other in results[1:])
            wrong += [] if alike else [f"the layouts differ at t = {t:.3f}"]
            if t in (0, 1) and not equal(results[0], load_file(work / f"{TEXTS[int(t)]}-hub" / "model.safetensors")):
                wrong.append(f"t = {t:.0f} is not the parent")
            curves.append(on_both_texts(work / f"hub-hub-{t:.4f}"))
            words = "the same" if alike else "DIFFER"
            print(f"| {t:.2f} | {curves[-1][0]:.3f} | {curves[-1][1]:.3f} | {words} |", flush=True)
    by_text = list(zip(*curves, strict=True))
    for text, curve in zip(TEXTS, by_text, strict=True):
        wrong += [] if is_interpolation(curve) else [f"no interpolation on {text}'s text"]
    if options.plot:
        draw(points, by_text, options.method, options.plot)
    print("\n".join(wrong) or "every t: the same tensors from all layouts, between the parents, which are its ends")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
