"""Multiply the last tokens of a prompt by the head as one matrix.

Symptom:  with frozen weights, as PEFT's are, the first token of a bfloat16 prompt takes 0.4 s longer on a CPU, and as
          much for each further prompt of a batch.
Cause:    `logits_to_keep` slices hidden states whose strides PyTorch takes for no matrix: it copies the head's weight.
Upstream: https://github.com/pytorch/pytorch/issues/186148
Remove:   when F.linear of `hidden_states[:, -1:]` calls no aten::bmm; see `zamba_compat.cpu.folded`.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import CACHE, Adapter


def forward(original: Any) -> Any:
    from zamba_compat.cpu.folded import gains, within
    from zamba_compat.cpu.function_mode import forward_within

    def context(model: Any, shape: Any) -> Any:
        return within() if gains(shape, model.model.embed_tokens.weight.device.type) else None

    return forward_within(original, context)


ADAPTER = Adapter(
    name="zamba2-folded-products",
    library="transformers",
    since="4.49",
    group="speed",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2ForCausalLM.forward",
    replace=forward,
    signature=("self", "input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", ...),
    upstream="pytorch/pytorch#186148",
)
