"""Benchmark: what the import costs, and loading 1.2B in bfloat16 stock and after the import, side by side.

Also what is paid in a release that was not tested, as this one is taken to be: fingerprints and the small model, once
a process, and the comparison with the files, at each loading.

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
from zamba_compat.layout.published import PUBLISHED

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


UNVERIFIED = """
import json, sys, time
import zamba_compat
from importlib.metadata import version
verified = zamba_compat.registry()._applier.verified
verified._verdicts["transformers", version("transformers")] = False
import torch, transformers.modeling_utils, transformers.models.auto.modeling_auto
from transformers import AutoModelForCausalLM
clock, result = time.perf_counter, {}
start = clock()
for adapter in zamba_compat.registry().adapters:
    if adapter.library == "transformers":
        verified.changed(adapter)
result["fingerprints"] = clock() - start
import transformers.models.zamba2.modeling_zamba2
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)  # the page cache, imports
from zamba_compat import postconditions
postconditions._judged.clear()
start = clock()
postconditions.computed_faults(model)
result["small model"] = clock() - start
start = clock()
assert postconditions.faults_of(model, {"pretrained_model_name_or_path": sys.argv[1]}) == []
result["comparison"] = clock() - start
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
            for mode, timed in runs.items():
                timed.append(in_process(LOAD, str(directory), mode))
        found = [in_process(UNVERIFIED, str(directory)) for _ in range(options.repeat)]
        paid = {name: statistics.median(run[name] for run in found) for name in found[0]}
    print(f"transformers {version('transformers')}, 1.2B bfloat16, hub layout, {size / 1e9:.2f} GB:")
    for mode, timed in runs.items():
        seconds = [run["seconds"] for run in timed]
        peak = max(run["peak_bytes"] for run in timed)
        print(
            f"  {mode:<6} {statistics.median(seconds):6.2f} s (of {', '.join(f'{s:.2f}' for s in seconds)}), "
            f"peak {peak / 1e9:.2f} GB = {peak / size:.2f} x the checkpoint"
        )
    ratio = statistics.median(r["seconds"] for r in runs["armed"]) / statistics.median(
        r["seconds"] for r in runs["stock"]
    )
    print(f"  armed / stock: {ratio:.2f}")
    loading = statistics.median(run["seconds"] for run in runs["armed"])
    print(
        f"in a release that was not tested: fingerprints {paid['fingerprints']:.2f} s and the small model "
        f"{paid['small model']:.2f} s once a process, the comparison {paid['comparison'] * 1e3:.0f} ms = "
        f"{paid['comparison'] / loading:.1%} of loading"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
