"""Benchmark: what the import costs, and loading 1.2B in bfloat16 stock and after the import, side by side.

python tools/bench_loading.py [--repeat 3] [--checkpoint DIR]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import make_checkpoint
from _bench import in_process
from zamba_compat.published import PUBLISHED

IMPORT = "import json, sys, time; t = time.perf_counter(); {}; print(json.dumps(1e3 * (time.perf_counter() - t)))"
LOAD = """
import json, sys
from _bench import measured
if sys.argv[2] == "armed":
    import zamba_compat
import torch
from transformers import AutoModelForCausalLM
import transformers.models.zamba2.modeling_zamba2
with measured() as result:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
print(json.dumps(result))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, help="of the 1.2B shape; made anew if not given")
    options = parser.parse_args()

    times = {
        what: min(in_process(IMPORT.format(what)) for _ in range(5))  # type: ignore[type-var]
        for what in ("import json", "import dataclasses, json, threading", "import zamba_compat")
    }
    print("import, best of 5, ms: " + ", ".join(f"{what} {ms:.1f}" for what, ms in times.items()))

    with tempfile.TemporaryDirectory() as temporary:
        directory = options.checkpoint or Path(temporary) / "checkpoint"
        if options.checkpoint is None:
            config = PUBLISHED["1.2B"].config
            make_checkpoint.write(directory, config, 10**10, 0, torch.bfloat16)
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        runs: dict[str, list[dict[str, float]]] = {"stock": [], "armed": []}
        in_process(LOAD, str(directory), "stock")  # the page cache
        for _ in range(options.repeat):
            for mode, found in runs.items():
                found.append(in_process(LOAD, str(directory), mode))
    print(f"transformers {version('transformers')}, 1.2B bfloat16, hub layout, {size / 1e9:.2f} GB:")
    for mode, found in runs.items():
        seconds = [run["seconds"] for run in found]
        peak = max(run["peak_bytes"] for run in found)
        print(
            f"  {mode:<6} {statistics.median(seconds):6.2f} s (of {', '.join(f'{s:.2f}' for s in seconds)}), "
            f"peak {peak / 1e9:.2f} GB = {peak / size:.2f} x the checkpoint"
        )
    ratio = statistics.median(r["seconds"] for r in runs["armed"]) / statistics.median(
        r["seconds"] for r in runs["stock"]
    )
    print(f"  armed / stock: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
