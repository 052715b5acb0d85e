"""Benchmark: 1.2B in NF4, quantized while loading by stock transformers against loaded quantized; sizes, floors.

python tools/bench_quantization.py [--repeat 3] [--checkpoint DIR]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import make_checkpoint
from _bench import in_process
from _bench.footprint import quantized_bytes
from zamba_compat.layout.published import PUBLISHED

LOAD = """
import json, sys
from _bench import measured
source, mode, saved = sys.argv[1:]
if mode != "stock":
    import zamba_compat
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
import bitsandbytes
import transformers.models.zamba2.modeling_zamba2
options = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
               bnb_4bit_compute_dtype=torch.bfloat16)
more = {} if mode == "loaded" else {"quantization_config": BitsAndBytesConfig(**options)}
with measured() as result:
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.bfloat16, **more)
from _bench.footprint import held_bytes
result["held"] = held_bytes(model)
if saved:
    model.save_pretrained(saved)
print(json.dumps(result))
"""


def line(what: str, runs: list[dict[str, Any]], size: int) -> str:
    seconds = [run["seconds"] for run in runs]
    anonymous, resident = (max(run[name] for run in runs) / size for name in ("peak_bytes", "resident_bytes"))
    return (
        f"  {what:<34} {statistics.median(seconds):6.2f} s (of {', '.join(f'{s:.2f}' for s in seconds)}); holds "
        f"{runs[0]['held'] / 1e9:.3f} GB; peak, as parts of the file read: anonymous {anonymous:.2f}, resident "
        f"{resident:.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="times that the quantized checkpoint is loaded")
    parser.add_argument("--checkpoint", type=Path, help="of the 1.2B shape; made anew if not given")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        source, saved = options.checkpoint or Path(temporary) / "checkpoint", Path(temporary) / "quantized"
        if options.checkpoint is None:
            make_checkpoint.write(source, PUBLISHED["1.2B"].config, 10**10, 0, torch.bfloat16)
        size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        stock = [in_process(LOAD, str(source), "stock", "")]
        armed = [in_process(LOAD, str(source), "armed", str(saved))]
        quantized = sum(file.stat().st_size for file in saved.glob("*.safetensors"))
        loaded = [in_process(LOAD, str(saved), "loaded", "") for _ in range(options.repeat)]

    releases = f"transformers {version('transformers')}, bitsandbytes {version('bitsandbytes')}"
    print(f"{releases}, 1.2B, NF4 with double quantization, from {size / 1e9:.2f} GB in bfloat16:")
    print(line("stock, quantizing while loading", stock, size))
    print(line("armed, quantizing while loading", armed, size))
    print(line("armed, loading the quantized file", loaded, quantized))
    ratio = stock[0]["seconds"] / statistics.median(run["seconds"] for run in loaded)
    print(f"  stock / loading the quantized file: {ratio:.1f}")
    for name, published in PUBLISHED.items():
        shapes = make_checkpoint.shapes(published.config)
        floor, stock_floor = quantized_bytes(shapes), quantized_bytes(shapes, shared_in_16_bits=True)
        print(f"  {name}: floor {floor / 1e9:.3f} GB; shared blocks in 16 bits, as stock: {stock_floor / 1e9:.3f} GB")
        if name == "1.2B":
            print(f"  {name}: the file has {quantized / 1e9:.3f} GB, {quantized / floor:.4f} x the floor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
