"""Pack no weight on a CPU that has no kernel for it.

Symptom:  a module that was pickled on a CPU with AVX512-BF16 computes garbage on one without, without an error, or
          stops with the AssertionError "N must be divisible by block_n".
Cause:    Linear4bit remembers in `support_avx512bf16_for_cpu` what the CPU could do on which it was constructed. The
          flag is pickled; where it is read again, weights are packed for a kernel that is not there.
Upstream: none known.
Remove:   when Linear4bit asks the CPU it runs on.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def convert(original: Any) -> Any:
    def convert(qweight: Any, quant_state: Any, block_n: int = 32) -> tuple[Any, Any]:
        return qweight, quant_state

    return convert


def kernel() -> str | None:
    from bitsandbytes.functional import has_avx512bf16

    return "this CPU has AVX512-BF16" if has_avx512bf16() else None


ADAPTER = Adapter(
    name="bitsandbytes-carried-cpu-flag",
    library="bitsandbytes",
    since="0.49",
    group="quantization",
    target="bitsandbytes.nn.modules:_convert_weight_packed_for_cpu",
    replace=convert,
    signature=("qweight", "quant_state", "block_n"),
    condition=kernel,
    upstream="none known",
)
