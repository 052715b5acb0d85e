"""Run models that have no rotary embedding.

Symptom:  AttributeError: 'Zamba2Model' object has no attribute 'rotary_emb' at the first forward of 2.7B.
Cause:    forward calls self.rotary_emb, which is built only with use_mem_rope.
Upstream: fixed in 5.4.0.
Remove:   when 5.3 leaves the supported range.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def init(original: Any) -> Any:
    from torch import nn

    class NoRotaryEmbedding(nn.Module):
        """Stands where the rotary embedding would be; attention without use_mem_rope ignores what it returns."""

        def forward(self, *_args: Any, **_kwargs: Any) -> None:
            return None

    def __init__(self: Any, config: Any) -> None:
        original(self, config)
        if not config.use_mem_rope:
            self.rotary_emb = NoRotaryEmbedding()

    return __init__


ADAPTER = Adapter(
    name="zamba2-no-rotary",
    library="transformers",
    since="5.0",
    fixed="5.4",
    group="numbers",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2Model.__init__",
    replace=init,
    signature=("self", "config"),
    upstream="fixed in 5.4.0",
)
