"""Benchmark: convert-checkpoint against `cp -r`, and quantize against bitsandbytes' kernel alone, by turns.

python tools/bench_convert.py [--repeat 3] [--no-quantize] [--work DIR]
python tools/bench_convert.py --shape 7B    # then both once more, in a hard 8 GB and with four threads
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
from _bench.limit import limited
from _bench.repeated import copy, line, ratio
from zamba_compat.layout.published import PUBLISHED

CONVERT = """
import json, sys
from _bench import measured
from _bench.limit import join
from zamba_compat.operations.convert import Options, convert
import torch
if len(sys.argv) > 4:
    torch.set_num_threads(4)
    join(sys.argv[4])
with measured() as result:
    report = convert(sys.argv[1], sys.argv[2], Options(**json.loads(sys.argv[3])))
result["bytes"] = report.bytes
print(json.dumps(result))
"""
NF4 = '{"quantize": "nf4", "double_quant": true}'
KERNEL = """
import json, sys
from pathlib import Path
from _bench import measured
import torch
import bitsandbytes.functional as F
from safetensors import safe_open
with measured() as result:
    for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():
                if "layers." in key and len(tensors.get_slice(key).get_shape()) == 2:
                    F.quantize_4bit(tensors.get_tensor(key), blocksize=64, compress_statistics=True, quant_type="nf4")
print(json.dumps(result))
"""


def within(source: Path, out: Path, limit: int, *, quantize: bool) -> None:
    """Both commands, each in a group of processes that may hold `limit` bytes, the page cache counted."""
    for what, asked in (("convert-checkpoint", "{}"), ("quantize, NF4, double", NF4))[: 1 + quantize]:
        with limited(limit) as group:
            run = in_process(CONVERT, str(source), str(out), asked, str(group.folder), env={"OMP_NUM_THREADS": "4"})
            peak = group.peak_bytes
        shutil.rmtree(out)
        print(f"{line(what, [run])}, {peak / 1e9:.2f} GB with the page cache, limit {limit / 1e9:.1f} GB, 4 threads")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=PUBLISHED, default="1.2B")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-quantize", dest="quantize", action="store_false")
    parser.add_argument("--limit", type=float, help="GB; once more within it, as --shape 7B does within 8")
    parser.add_argument("--work", type=Path, help="a directory with room for three times the checkpoint")
    options = parser.parse_args()
    limit = options.limit or (8.0 if options.shape == "7B" else None)

    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        source, out = Path(temporary) / "source", Path(temporary) / "out"
        size = make_checkpoint.write(source, PUBLISHED[options.shape].config, 5 * 10**9, 0, torch.bfloat16)
        copies, conversions = [], []
        for _ in range(options.repeat):
            copies.append(copy(source, out))
            shutil.rmtree(out)
            conversions.append(in_process(CONVERT, str(source), str(out), "{}"))
            shutil.rmtree(out)
        print(f"{options.shape}, {size / 1e9:.2f} GB in bfloat16:")
        print(line("cp -r", copies))
        print(line("convert-checkpoint", conversions))
        print(f"  convert-checkpoint / cp -r: {ratio(conversions, copies):.2f}", flush=True)
        if options.quantize:
            kernel = [in_process(KERNEL, str(source))]
            quantized = [in_process(CONVERT, str(source), str(out), NF4)]
            shutil.rmtree(out)
            print(line("bitsandbytes' kernel alone", kernel))
            print(line("quantize, NF4, double", quantized))
            print(
                f"  quantize / kernel alone: {ratio(quantized, kernel):.2f}; {quantized[0]['bytes'] / 1e9:.3f} GB",
                flush=True,
            )
        if limit is not None:
            within(source, out, int(limit * 1e9), quantize=options.quantize)
    return 0


if __name__ == "__main__":
    sys.exit(main())
