"""Let keys and values grow in place.

Symptom:  on a CPU a token takes longer the longer the text is, by far more than attention to it costs: in 1.2B, after
          4,096 tokens, a quarter of its time.
Cause:    every cache of transformers (Zamba2HybridDynamicCache.update, DynamicLayer.update) joins what it holds with
          the new token's by torch.cat, which copies all of it.
Upstream: none known; StaticCache has its room from the start, but no linear attention layers take it.
Goes:     when the dynamic cache has room to grow.
"""

from __future__ import annotations

from typing import Any

from zamba_compat.adapters import Adapter


def forward(original: Any) -> Any:
    def forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        from zamba_compat.growing import Growing, gains

        if not gains(hidden_states, kwargs.get("past_key_values", kwargs.get("past_key_value"))):
            return original(self, hidden_states, *args, **kwargs)
        with Growing():
            return original(self, hidden_states, *args, **kwargs)

    return forward


ADAPTER = Adapter(
    name="zamba2-growing-cache",
    requires="transformers>=4.49,<5.24",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2AttentionDecoderLayer.forward",
    replace=forward,
    signature=("self", "hidden_states", "original_hidden_states", "layer_idx", ...),
    upstream="none known",
    ends=None,
)
