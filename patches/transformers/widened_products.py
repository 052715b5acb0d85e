"""Multiply 16-bit matrices in float32 where the processor has no instructions for 16 bits.

Symptom:  on a CPU without AVX512-BF16 (for float16: without AVX512-FP16 or AMX) a bfloat16 model takes ten times as
          long for a prompt as a float32 one.
Cause:    PyTorch's 16-bit products there are a plain loop, or oneDNN's emulation.
Upstream: none known.
Remove:   when PyTorch's products in 16 bits are as fast as those in 32 there; `zamba_compat.cpu.upcast` says where not.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import CACHE, Adapter


def forward(original: Any) -> Any:
    from zamba_compat.cpu.function_mode import forward_within
    from zamba_compat.cpu.upcast import gains, widened

    def context(model: Any, shape: Any) -> Any:
        weight = model.model.embed_tokens.weight
        return widened() if gains(weight.dtype, weight.device.type, shape.numel()) else None

    return forward_within(original, context)


ADAPTER = Adapter(
    name="zamba2-widened-products",
    library="transformers",
    since="4.49",
    group="speed",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2ForCausalLM.forward",
    replace=forward,
    signature=("self", "input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", ...),
    upstream="none known",
)
