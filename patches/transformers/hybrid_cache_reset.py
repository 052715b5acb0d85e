"""Reset a Zamba2HybridDynamicCache, so that it can be used for another sequence.

Symptom:  AttributeError: 'dict' object has no attribute 'zero_'.
Cause:    Zamba2HybridDynamicCache.reset treats its dicts of states as tensors. It also leaves the keys and
          values, and the mark that there is a past.
Upstream: none known; 5.5.0 replaced the class.
Remove:   when 5.4 leaves the supported range.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def reset(original: Any) -> Any:
    def reset(self: Any) -> None:
        for states in (self.conv_states, self.ssm_states):
            for layer, state in states.items():
                states[layer] = state.new_zeros(state.shape)
        for cache in (self.key_cache, self.value_cache):
            cache[:] = [held.new_zeros(held.shape[0], 0) for held in cache]
        self.has_previous_state = False

    return reset


ADAPTER = Adapter(
    name="zamba2-hybrid-cache-reset",
    library="transformers",
    since="4.49",
    fixed="5.5",
    group="numbers",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2HybridDynamicCache.reset",
    replace=reset,
    signature=("self",),
    upstream="none known",
    ends="replaced the class",
)
