"""Multiply by a Zamba's 4-bit weights at the speed of the memory on a CPU, as quantization left them.

Symptom:  without an error: a 4-bit model takes nine times as long per token as the same model in bfloat16, and four
          times as long to its first token (1.2B on two cores with AVX2: 2.96 and 0.33 s, 27 and 6 s). With AVX512-BF16
          it takes as long as in bfloat16 per token, and twice as long to its first one; there float32 is computed with
          the precision of bfloat16.
Cause:    bitsandbytes has one kernel for products with 4-bit weights on a CPU, for AVX512-BF16; it is made for a few
          tokens, rounds activations to bfloat16, and wants weights in an order of its own. Everywhere else each call
          dequantizes the whole weight and multiplies it by PyTorch's product, which is slow there, too.
Upstream: none known.
Remove:   when bitsandbytes has kernels for AVX2 and AVX-512 that are as fast.

`zamba_compat.cpu.nf4` says what is computed, and where it stays bitsandbytes' own: with gradients, odd shapes, where
the loops in C could not be compiled. Other models' products stay bitsandbytes' own, bit for bit, but for those in
float32 that its kernel would round to bfloat16 (see cpu_packing.py).
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def matmul_4bit(original: Any) -> Any:
    import torch
    from bitsandbytes.functional import has_avx512bf16

    from zamba_compat.cpu.nf4 import is_running, product

    rounds = has_avx512bf16()

    def matmul_4bit(A: Any, B: Any, quant_state: Any, out: Any = None, bias: Any = None) -> Any:
        ours = is_running() or (rounds and A.dtype == torch.float32)
        result = product(A, B, quant_state, bias) if ours and quant_state is not None else None
        if result is None:
            return original(A, B, quant_state, out=out, bias=bias)
        return result if out is None else out.copy_(result)

    return matmul_4bit


def not_needed() -> str | None:
    from zamba_compat.cpu.native.quantized import loops

    return None if loops() is not None else "there are no loops in C for this CPU, or they could not be compiled"


ADAPTER = Adapter(
    name="bitsandbytes-cpu-product",
    library="bitsandbytes",
    since="0.49",
    group="speed",
    patches=tuple(
        Patch(
            target=f"{module}:matmul_4bit",
            replace=matmul_4bit,
            signature=("A", "B", "quant_state", "out", "bias"),
        )
        for module in ("bitsandbytes.autograd._functions", "bitsandbytes")
    ),
    condition=not_needed,
    upstream="none known",
)
