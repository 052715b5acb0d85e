"""Perplexity per byte of the tiny pair, merged with a factor that grows with depth, by how the copies are resolved.

python tools/resolved_perplexity.py [--adapter-rank N ...]
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from _tiny.perplexity import TEXTS, TINY, on_both_texts
from zamba_compat import SharingMap
from zamba_compat.operations.convert import Options, convert


def merge(out: Path) -> None:
    """Write both models key by key, shared blocks at every layer, and interpolate from base (first) to tuned (last)."""
    sharing = SharingMap.from_config(TINY / "base")
    states = [load_file(TINY / name / "model.safetensors") for name in TEXTS]
    merged = {}
    for key in sharing.expanded_keys():
        layer = re.search(r"layers\.(\d+)\.", key)
        factor = 0.5 if layer is None else int(layer[1]) / (sharing.num_layers - 1)
        first, last = (state[sharing.canonical_key(key)].float() for state in states)
        merged[key] = torch.lerp(first, last, factor).bfloat16()
    out.mkdir()
    save_file(merged, out / "model.safetensors", {"format": "pt"})
    shutil.copy(TINY / "base" / "config.json", out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter-rank", type=int, nargs="*", default=[128], help="also absorb at these ranks")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = {name: Options(resolve=name) for name in ("untie", "first", "mean", "karcher", "absorb")}
    rows |= {f"absorb, rank {n}": Options(resolve="absorb", adapter_rank=n) for n in options.adapter_rank}
    print("| copies | on base's text | on tuned's | MB | largest error left in a tensor |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "merged"
        merge(source)
        for row, how in rows.items():
            report = convert(source, Path(temporary) / row.replace(" ", "-"), how)
            base, tuned = on_both_texts(Path(report.destination))
            left = max((residual.worst for residual in report.residuals), default=0.0)
            print(f"| {row} | {base:.3f} | {tuned:.3f} | {report.bytes / 1e6:.2f} | {left:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
