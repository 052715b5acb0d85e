"""Benchmark: bitsandbytes' 4-bit CPU kernel against its plain path, for every linear of the published models.

python tools/bench_bnb_cpu.py [--models 1.2B 2.7B 7B] [--tokens 1 4 16 64 512] [--shapes 96x2560 ...] [--quant-type nf4]

The kernel needs a CPU with AVX512-BF16. The plain path dequantizes the weight and multiplies. An error is relative to a
float32 product with the dequantized weight. The verdict says where the kernel is wrong, or slower than the plain path.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from importlib.metadata import version

import torch
from torch import Tensor, nn

import zamba_compat
from zamba_compat.layout.published import PUBLISHED

TOLERANCE = 2e-2


def published_shapes(model: str) -> dict[tuple[int, int], str]:
    """(rows, columns) of every linear that is quantized, and the name of the first one that has it."""
    from transformers import Zamba2Config, Zamba2ForCausalLM

    with torch.device("meta"):
        built = Zamba2ForCausalLM(Zamba2Config(**PUBLISHED[model].config))
    shapes: dict[tuple[int, int], str] = {}
    for name, module in built.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            parts = [part for part in name.split(".") if not part.isdigit()]
            shapes.setdefault((module.out_features, module.in_features), ".".join(parts[-2:]))
    return shapes


def measure(module: nn.Module, x: Tensor, wanted: Tensor, seconds: float) -> tuple[float, float]:
    """Median milliseconds of a forward, and its relative error."""
    error = float((module(x).float() - wanted).norm() / wanted.norm())  # the first forward may pack
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        start = time.perf_counter()
        module(x)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 512])
    parser.add_argument("--shapes", nargs="*", default=[], help="ROWSxCOLUMNS, besides those of the models")
    parser.add_argument("--quant-type", default="nf4", choices=["nf4", "fp4"])
    parser.add_argument("--seconds", type=float, default=0.3, help="of measuring, per shape and path")
    options = parser.parse_args()

    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit

    applied = {status.name for status in zamba_compat.status() if status.state == "applied"}
    fast = "bitsandbytes-cpu-packing" in applied
    print(f"bitsandbytes {version('bitsandbytes')}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if not fast:
        print("The fast kernel is not in use: this CPU lacks AVX512-BF16, or this bitsandbytes has no kernel for it.")
        print("Only the plain path is measured; this run says nothing about the kernel.")

    shapes: dict[tuple[int, int], str] = {}
    for model in options.models:
        for shape, name in published_shapes(model).items():
            shapes[shape] = f"{shapes[shape]}, {model}" if shape in shapes else f"{name} of {model}"
    for text in options.shapes:
        rows, columns = map(int, text.split("x"))
        shapes.setdefault((rows, columns), "given")

    print(
        f"{'rows x columns':>15} {'tokens':>6} {'plain ms':>9} {'fast ms':>9} {'fast/plain':>10} {'error':>8}  "
        f"{'verdict':<13} linear"
    )
    torch.manual_seed(0)
    bad = 0
    with torch.no_grad():
        for (rows, columns), name in sorted(shapes.items()):
            module = bitsandbytes.nn.Linear4bit(
                columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type=options.quant_type
            ).to("cpu")
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            for tokens in options.tokens:
                x = torch.randn(tokens, columns).to(torch.bfloat16)
                wanted = x.float() @ weight.T
                plain, error = measure(module.train(), x, wanted, options.seconds)  # in training nothing is packed
                line, verdict = f"{plain:9.3f} {'-':>9} {'-':>10}", "plain only"
                if fast:
                    quick, error = measure(module.eval(), x, wanted, options.seconds)
                    line = f"{plain:9.3f} {quick:9.3f} {quick / plain:10.2f}"
                    # A nan is wrong, too.
                    verdict = "ok" if error <= TOLERANCE else "WRONG"
                    verdict += ", SLOWER" if quick > plain else ""
                    bad += verdict != "ok"
                print(f"{f'{rows} x {columns}':>15} {tokens:>6} {line} {error:8.1e}  {verdict:<13} {name}", flush=True)
    if fast:
        print(f"{bad} of {len(shapes) * len(options.tokens)} wrong or slower")
    return 0


if __name__ == "__main__":
    sys.exit(main())
