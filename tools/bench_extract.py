"""Benchmark: extract-lora of two checkpoints of a published shape with random weights.

python tools/bench_extract.py [--shape 1.2B] [--rank 64 ...] [--work DIR]

Such a pair is the slowest there is: every singular value of a difference is about as large as the next.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import make_checkpoint
from _bench import in_process
from _bench.repeated import line
from zamba_compat.layout.published import PUBLISHED

EXTRACT = """
import json, sys
from _bench import measured
from zamba_compat.operations.extract_lora import ExtractOptions, extract_lora
import torch
base, tuned, out, rank = sys.argv[1:]
with measured() as result:
    report = extract_lora(base, tuned, out, ExtractOptions(rank=int(rank)))
print(json.dumps({**result, "bytes": report.bytes, "told": report.peak_memory, "kept": report.total.kept}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=PUBLISHED, default="1.2B")
    parser.add_argument("--rank", type=int, nargs="+", default=[64], metavar="R")
    parser.add_argument("--work", type=Path, help="a directory with room for twice the checkpoint and the adapter")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        pair, out = [Path(temporary) / name for name in ("base", "tuned")], Path(temporary) / "out"
        for seed, path in enumerate(pair):
            size = make_checkpoint.write(path, PUBLISHED[options.shape].config, 5 * 10**9, seed, torch.bfloat16)
        print(f"{options.shape}, twice {size / 1e9:.2f} GB in bfloat16, {torch.get_num_threads()} threads:", flush=True)
        for rank in options.rank:
            run = in_process(EXTRACT, *map(str, pair), str(out), str(rank))
            shutil.rmtree(out)
            told = f"{run['cpu_seconds']:.0f} s of processors, told {run['told'] / 1e6:.0f} MB"
            made = f"adapter of {run['bytes'] / 1e9:.2f} GB holds {run['kept']:.1%} of the difference"
            print(f"{line(f'extract-lora, rank {rank}', [run])}, {told}; {made}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
