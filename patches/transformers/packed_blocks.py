"""Read less of the shared blocks for a token.

Symptom:  a token takes longer than the model's size says: a shared block is read again at each of its depths, and in
          1.2B that is 1.3 of the 3.4 GB that a token reads.
Cause:    Zamba2AttentionDecoderLayer multiplies by all of its 16-bit weights every time, also by the half of q, k and v
          that meets the embedding, which is the same at every depth.
Upstream: none known.
Goes:     never by itself; it only saves time. `zamba_compat.packed_blocks` says how, and what it takes.
"""

from __future__ import annotations

from typing import Any

from zamba_compat.adapters import Adapter


def forward(original: Any) -> Any:
    def forward(
        self: Any, hidden_states: Any, original_hidden_states: Any, layer_idx: Any, *args: Any, **kwargs: Any
    ) -> Any:
        from zamba_compat.packed_blocks import one_token, prompted

        given = hidden_states, original_hidden_states
        within = one_token(self, *given, kwargs.get("past_key_values", kwargs.get("past_key_value")))
        if within is None:
            prompted(self)
            return original(self, *given, layer_idx, *args, **kwargs)
        with within:
            return original(self, *given, layer_idx, *args, **kwargs)

    return forward


ADAPTER = Adapter(
    name="zamba2-packed-blocks",
    requires="transformers>=4.49,<5.24",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2AttentionDecoderLayer.forward",
    replace=forward,
    signature=("self", "hidden_states", "original_hidden_states", "layer_idx", ...),
    upstream="none known",
    ends=None,
)
