"""Run the norms, and the shared blocks' feed-forward part, in blocks of tokens.

Symptom:  on a CPU a long prompt takes a fifth longer than it need, and more memory than the cache accounts for.
Cause:    Zamba2RMSNorm.forward and Zamba2MLP.forward make several tensors for all tokens at once, up to twice the
          intermediate size wide. Writing those for the first time takes longer than computing them: at 1024 tokens
          of 1.2B, the feed-forward part's adapter alone fills 66 MB.
Upstream: none known.
Remove:   never by itself; it only saves time and memory.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch

MODULE = "transformers.models.zamba2.modeling_zamba2"


def mlp_forward(original: Any) -> Any:
    from zamba_compat.cpu.blocking import is_long, mlp_forward

    def forward(self: Any, hidden_state: Any, layer_idx: Any = None) -> Any:
        result = mlp_forward(self, hidden_state, layer_idx) if is_long(hidden_state) else None
        return original(self, hidden_state, layer_idx) if result is None else result

    return forward


def norm_forward(original: Any) -> Any:
    from zamba_compat.cpu.blocking import is_long, is_plain_norm, rms_norm

    def forward(self: Any, hidden_states: Any) -> Any:
        if is_long(hidden_states) and is_plain_norm(self, hidden_states):
            return rms_norm(self, hidden_states)
        return original(self, hidden_states)

    return forward


ADAPTER = Adapter(
    name="zamba2-blocks-of-tokens",
    library="transformers",
    since="4.49",
    group="speed",
    patches=(
        Patch(
            target=f"{MODULE}:Zamba2MLP.forward",
            replace=mlp_forward,
            signature=("self", "hidden_state", "layer_idx"),
        ),
        Patch(
            target=f"{MODULE}:Zamba2RMSNorm.forward",
            replace=norm_forward,
            signature=("self", "hidden_states"),
        ),
    ),
    upstream="none known",
)
