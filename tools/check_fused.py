"""The simulated cases through mamba_ssm's own Triton kernels, in Triton's interpreter: no GPU is needed.

    python tools/check_fused.py MAMBA_CHECKOUT                         # a checkout of state-spaces/mamba
    python tools/check_fused.py MAMBA_CHECKOUT --only padding --pattern 7B
    python tools/overlays.py run 4.57.6 python tools/check_fused.py MAMBA_CHECKOUT --write

Needs triton and einops (pip install triton einops). Of causal_conv1d, which is CUDA, the stand-in computes, backward
too. Prints for each case the relative error against the float64 reference; --write puts them into docs/gpu.md. Exit
status 1 when one is beyond its bound (tests/support/simulated.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]
os.environ["TRITON_INTERPRET"] = "1"
DOCUMENT = ROOT / "docs" / "gpu.md"


def conv_functions() -> ModuleType:
    """causal_conv1d.cpp_functions, by the stand-in: what mamba_ssm's kernel of a whole mixer calls."""
    import torch
    from torch import Tensor

    from support import fused_kernels

    module = ModuleType("causal_conv1d.cpp_functions")

    def forward(x: Tensor, weight: Tensor, bias: Any, seq_idx: Any, initial: Any, final: Any, silu: bool) -> Tensor:
        activation = "silu" if silu else None
        return fused_kernels.causal_conv1d_fn(x, weight, bias, seq_idx, initial, activation=activation)

    def backward(
        x: Tensor, weight: Tensor, bias: Any, dout: Tensor, seq_idx: Any, initial: Any, dfinal: Any, dx: Any, *rest: Any
    ) -> tuple[Any, ...]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, *(() if bias is None else (bias,)))]
        with torch.enable_grad():
            out = forward(leaves[0], leaves[1], None if bias is None else leaves[2], seq_idx, None, None, rest[-1])
            found = torch.autograd.grad(out, leaves, dout)
        if dx is not None:
            dx.copy_(found[0])
        return (found[0] if dx is None else dx), found[1], None if bias is None else found[2], None

    module.causal_conv1d_fwd_function = forward  # type: ignore[attr-defined]
    module.causal_conv1d_bwd_function = backward  # type: ignore[attr-defined]
    module.causal_conv1d_update_function = None  # type: ignore[attr-defined]
    return module


def kernels_of(checkout: Path) -> dict[str, Any]:
    """mamba_ssm's functions, imported without the package's own __init__, which wants what is compiled."""
    import torch
    import triton

    from support import fused_kernels

    source = checkout / "mamba_ssm"
    if not (source / "ops" / "triton" / "ssd_combined.py").is_file():
        raise SystemExit(f"{checkout} is no checkout of state-spaces/mamba: it has no mamba_ssm/ops/triton.")
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.utils"):
        package = ModuleType(name)
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = package
    conv = sys.modules["causal_conv1d"] = ModuleType("causal_conv1d")
    conv.__path__ = []
    conv.causal_conv1d_fn = fused_kernels.causal_conv1d_fn  # type: ignore[attr-defined]
    sys.modules["causal_conv1d.cpp_functions"] = conv_functions()

    tuned = triton.autotune  # which would time every configuration on a device
    triton.autotune = lambda configs, key, **kwargs: tuned(configs[:1], key)
    torch.cuda.device = lambda index: nullcontext()  # type: ignore
    # How many tiles are worked on at once, which no result depends on.
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=2)  # type: ignore
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined

    functions = (selective_state_update, mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined)
    found = {function.__name__: function for function in functions}
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.utils", "causal_conv1d"):
        del sys.modules[name]  # transformers would take them for installed
    return found


def splice(text: str, release: str, lines: list[str]) -> str:
    begin, end = f"<!-- interpreter {release} -->", f"<!-- /interpreter {release} -->"
    before, found, rest = text.partition(begin)
    made = "\n".join([begin, f"transformers {release}:", "", *lines, end])
    return f"{before}{made}{rest.partition(end)[2]}" if found else f"{text.rstrip()}\n\n{made}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose name holds one of these")
    parser.add_argument("--pattern", action="append", help="1.2B or 7B; both by default")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/gpu.md")
    options = parser.parse_args()

    import warnings

    warnings.simplefilter("ignore")
    import zamba_compat  # noqa: F401

    functions = kernels_of(options.checkout)
    import torch
    import transformers

    from support import simulated

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    wrong, lines = 0, ["| case | pattern | error |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        for pattern in options.pattern or simulated.PATTERNS:
            bench = simulated.Bench(pattern, Path(scratch) / pattern, False, functions)
            for name, case in simulated.CASES.items():
                if not any(part in name for part in options.only):
                    continue
                began = time.monotonic()
                error = case.run(bench)
                wrong += not error <= case.allowed
                lines.append(f"| {name} | {pattern} | {error:.1e} |")
                print(f"{pattern} {name}: {error:.1e}  ({time.monotonic() - began:.0f} s)", flush=True)
    if options.write and not wrong:
        DOCUMENT.write_text(splice(DOCUMENT.read_text(encoding="utf-8"), transformers.__version__, lines))
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
