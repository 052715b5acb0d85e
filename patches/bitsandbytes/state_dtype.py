"""Leave a quant state's dtype alone when a CPU computes with it.

Symptom:  after a forward on a CPU, dequantize_4bit returns the weights rounded to the input's dtype, and a saved quant
          state names that dtype.
Cause:    matmul_4bit writes the input's dtype into the quant state it is given.
Upstream: none known; 0.50.0 no longer does it.
Remove:   when 0.49 leaves the supported range.
"""

from __future__ import annotations

import copy
from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def matmul_4bit(original: Any) -> Any:
    def matmul_4bit(A: Any, B: Any, quant_state: Any, out: Any = None, bias: Any = None) -> Any:
        if A.device.type == "cpu":
            quant_state = copy.copy(quant_state)
        return original(A, B, quant_state, out=out, bias=bias)

    return matmul_4bit


ADAPTER = Adapter(
    name="bitsandbytes-state-dtype",
    library="bitsandbytes",
    since="0.49",
    fixed="0.50",
    group="quantization",
    patches=tuple(
        Patch(
            target=f"{module}:matmul_4bit",
            replace=matmul_4bit,
            signature=("A", "B", "quant_state", "out", "bias"),
        )
        for module in ("bitsandbytes.autograd._functions", "bitsandbytes")
    ),
    upstream="none known",
)
