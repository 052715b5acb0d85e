"""Multiply bfloat16 matrices with AMX by a loop of our own.

Symptom:  on a CPU with AMX a prompt in bfloat16 takes up to 1.8 times as long as its multiplications have to.
Cause:    oneDNN rearranges every weight for the tiles at every call, and shares rows out among threads beforehand.
Upstream: none known.
Remove:   when PyTorch keeps weights as the tiles read them, or reads them as they are; see `zamba_compat.cpu.amx`.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import CACHE, Adapter


def forward(original: Any) -> Any:
    from zamba_compat.cpu.amx import gains, within
    from zamba_compat.cpu.function_mode import forward_within
    from zamba_compat.cpu.gemv import is_bfloat16

    def context(model: Any, shape: Any) -> Any:
        weight = model.model.embed_tokens.weight
        return within() if gains(weight.dtype, weight.device.type, shape.numel()) and is_bfloat16(model) else None

    return forward_within(original, context)


ADAPTER = Adapter(
    name="zamba2-tiled-products",
    library="transformers",
    since="4.49",
    group="speed",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2ForCausalLM.forward",
    replace=forward,
    signature=("self", "input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", ...),
    upstream="none known",
)
