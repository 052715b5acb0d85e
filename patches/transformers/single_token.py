"""Decode at the speed of the memory.

Symptom:  a bfloat16 model on a CPU takes twice as long per token as reading its weights does.
Cause:    PyTorch takes oneDNN's product of matrices for a single row.
Upstream: none known.
Remove:   when PyTorch's product of one row reads weights at the memory's speed; see `zamba_compat.cpu.gemv`.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import CACHE, Adapter


def forward(original: Any) -> Any:
    from zamba_compat.cpu.function_mode import forward_within
    from zamba_compat.cpu.gemv import gains, is_bfloat16, within

    def context(model: Any, shape: Any) -> Any:
        return within() if gains(model.model.embed_tokens.weight, shape.numel()) and is_bfloat16(model) else None

    return forward_within(original, context)


ADAPTER = Adapter(
    name="zamba2-single-token",
    library="transformers",
    since="4.49",
    group="speed",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2ForCausalLM.forward",
    replace=forward,
    signature=("self", "input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", ...),
    upstream="none known",
)
