"""Take tokens through the shared blocks at the speed of the memory, and nothing twice.

Symptom:  on a CPU a token takes longer than the model's size says, and the longer the text is the more so. Of 1.2B it
          reads 3.4 GB, 1.3 of them the shared block, anew at each depth; after 4,096 tokens two fifths of its time go
          to attention, and a quarter to copying keys and values. A prompt takes 7% more multiplications than it need.
Cause:    Zamba2AttentionDecoderLayer multiplies by all of its 16-bit weights every time, also by the half of q, k and v
          that meets the embedding, which is the same at every depth. PyTorch's attention for a CPU is made for many
          queries. Every cache of transformers (Zamba2HybridDynamicCache.update, DynamicLayer.update) joins what it
          holds with the new token's by torch.cat.
Upstream: none known; StaticCache has its room from the start, but no linear attention layers take it.
Goes:     never by itself; it only saves time. `zamba_compat.shared_token` says how.
"""

from __future__ import annotations

from typing import Any

from zamba_compat.adapters import CACHE, Adapter


def forward(original: Any) -> Any:
    from zamba_compat.shared_token import within

    def forward(
        self: Any, hidden_states: Any, original_hidden_states: Any, layer_idx: Any, *args: Any, **kwargs: Any
    ) -> Any:
        given = hidden_states, original_hidden_states
        cache = next((kwargs[name] for name in CACHE.names if name in kwargs), None)
        with within(self, *given, cache):
            return original(self, *given, layer_idx, *args, **kwargs)

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
