"""Give the positions of a block one 8-bit state, and a weight that was stored in 8 bits its state.

Symptom:  5.x: "'NoneType' object has no attribute ..." at the second position of a block. With bitsandbytes before
          0.48 on a CPU, silent: a checkpoint that was stored in 8 bits gives logits that are off by 135%.
Cause:    Linear8bitLt moves the quantized weight from the parameter to its own state at the first forward; where each
          hybrid layer has modules of its own, the modules of the other positions find none. Int8Params.to before 0.48
          leaves `CB` empty when an int8 weight stays on the CPU, and the forward quantizes the int8 values again.
Upstream: none known.
Remove:   when Zamba2 holds one module per shared block, or bitsandbytes leaves the weight where it is.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def after_loading(original: Any) -> Any:
    def _process_model_after_weight_loading(self: Any, model: Any, **kwargs: Any) -> Any:
        if model.config.model_type in ("zamba2", "zamba"):
            from zamba_compat.runtime.bitsandbytes import share_states

            share_states(model)
        return original(self, model, **kwargs)

    return _process_model_after_weight_loading


ADAPTERS = (
    Adapter(
        name="quant-state-per-module",
        library="transformers",
        since="4.49",
        group="quantization",
        target="transformers.quantizers.quantizer_bnb_8bit:Bnb8BitHfQuantizer._process_model_after_weight_loading",
        replace=after_loading,
        signature=("self", "model", "**kwargs"),
        upstream="none known",
    ),
)
