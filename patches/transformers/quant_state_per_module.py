"""Give the positions of a block one MatmulLtState.

Symptom:  in 8 bits, AttributeError or "'NoneType' object has no attribute ..." at the second position of a block.
Cause:    Linear8bitLt moves the quantized weight from the parameter to its own state at the first forward; where each
          hybrid layer has modules of its own, the modules of the other positions find none.
Upstream: none known.
Goes:     when Zamba2 holds one module per shared block, or bitsandbytes leaves the weight where it is.
"""

from __future__ import annotations

from typing import Any

from zamba_compat.adapters import Adapter, Patch


def after_loading(original: Any) -> Any:
    def _process_model_after_weight_loading(self: Any, model: Any, **kwargs: Any) -> Any:
        if model.config.model_type in ("zamba2", "zamba"):
            from zamba_compat.quantized import share_states

            share_states(model)
        return original(self, model, **kwargs)

    return _process_model_after_weight_loading


ADAPTER = Adapter(
    name="quant-state-per-module",
    requires="transformers>=5.0,<5.24",
    patches=tuple(
        Patch(
            target=f"transformers.quantizers.quantizer_bnb_{bits}bit:{cls}._process_model_after_weight_loading",
            replace=after_loading,
            signature=("self", "model", "**kwargs"),
        )
        for bits, cls in ((4, "Bnb4BitHfQuantizer"), (8, "Bnb8BitHfQuantizer"))
    ),
    upstream="none known",
    ends=None,
)
