"""Attend to long contexts, one token at a time, at the speed of the memory.

Symptom:  on a CPU a token takes longer the longer the text is: of 1.2B after 4,096 tokens two fifths of its time go to
          attention, and a quarter to copying keys and values.
Cause:    PyTorch's attention for a CPU is made for many queries. Every cache of transformers
          (Zamba2HybridDynamicCache.update, DynamicLayer.update) joins what it holds with the new token's by torch.cat.
Upstream: none known; StaticCache has its room from the start, but no linear attention layers take it.
Goes:     never by itself; it only saves time. `zamba_compat.cpu.shared_block` says how.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import CACHE, Adapter


def forward(original: Any) -> Any:
    from zamba_compat.cpu.shared_block import within

    def forward(
        self: Any, hidden_states: Any, original_hidden_states: Any, layer_idx: Any, *args: Any, **kwargs: Any
    ) -> Any:
        cache = next((kwargs[name] for name in CACHE.names if name in kwargs), None)
        with within(hidden_states, cache):
            return original(self, hidden_states, original_hidden_states, layer_idx, *args, **kwargs)

    return forward


ADAPTER = Adapter(
    name="zamba2-shared-token",
    library="transformers",
    since="4.49",
    group="speed",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2AttentionDecoderLayer.forward",
    replace=forward,
    signature=("self", "hidden_states", "original_hidden_states", "layer_idx", ...),
    upstream="none known",
)
