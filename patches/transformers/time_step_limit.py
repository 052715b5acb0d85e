"""Hand the config's time_step_limit to the fused kernels, not time_step_min.

Symptom:  logits off by 0.1 to 0.5%, without an error; the prompt and single tokens follow different rules.
Cause:    Zamba2MambaMixer.__init__ sets time_step_limit = (time_step_min, inf), which the scan over a
          sequence applies to dt and the step for one token does not. The models were trained without a limit
          (see zamba_compat.mamba2.mixer); time_step_min only draws the initial dt_bias.
Upstream: none known.
Remove:   when a release reads config.time_step_limit again, as it was up to 5.14.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def init(original: Any) -> Any:
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        from zamba_compat.mamba2.mixer import time_step_limit

        original(self, config, *args, **kwargs)
        self.time_step_limit = time_step_limit(config) or (0.0, float("inf"))

    return __init__


ADAPTER = Adapter(
    name="zamba2-time-step-limit",
    library="transformers",
    since="5.15",
    group="numbers",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer.__init__",
    replace=init,
    relies=("transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer.forward",),
    signature=("self", "config", ...),
    upstream="none known",
)
