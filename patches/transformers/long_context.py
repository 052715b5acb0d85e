"""Rescale the rotary base of use_long_context when it is used, once, and never store it.

Symptom:  4.x: each save and load multiplies rope_theta again (85,550 -> 731,886). 5.x: rope_theta is never rescaled,
          logits off by several percent. Both silent.
Cause:    4.x rescales in Zamba2Config.__init__ and saves the product; 5.x dropped the rescaling with rope_parameters.
Source:   zamba_compat/layout/rotary.py.
Upstream: none known.
Remove:   when upstream rescales in the rotary embedding.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter
from zamba_compat.layout.rotary import PUBLISHED_BASE, rescaled_theta


def config_init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.use_mem_rope and self.use_long_context:
            self.rope_theta = kwargs.get("rope_theta", PUBLISHED_BASE)

    return __init__


def rotary_init(original: Any) -> Any:
    import copy

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        scaled = copy.copy(config)
        scaled.rope_theta = rescaled_theta(config, config.rope_theta)
        original(self, scaled, *args, **kwargs)
        self.config = config

    return __init__


def default_rope_parameters(original: Any) -> Any:
    import copy

    def compute_default_rope_parameters(config: Any, *args: Any, **kwargs: Any) -> Any:
        theta = rescaled_theta(config, config.rope_parameters["rope_theta"])
        scaled = copy.copy(config)
        scaled.rope_parameters = {**config.rope_parameters, "rope_theta": theta}
        return original(scaled, *args, **kwargs)

    return compute_default_rope_parameters


MODELING = "transformers.models.zamba2.modeling_zamba2:Zamba2RotaryEmbedding"

ADAPTERS = (
    Adapter(
        name="zamba2-long-context-config",
        library="transformers",
        since="4.49",
        fixed="5",
        group="config",
        target="transformers.models.zamba2.configuration_zamba2:Zamba2Config.__init__",
        replace=config_init,
        upstream="none known",
        ends="continued by zamba2-long-context-5x",
    ),
    Adapter(
        name="zamba2-long-context-4x",
        library="transformers",
        since="4.49",
        fixed="5",
        group="config",
        target=f"{MODELING}.__init__",
        replace=rotary_init,
        signature=("self", "config", ...),
        upstream="none known",
        ends="continued by zamba2-long-context-5x",
    ),
    Adapter(
        name="zamba2-long-context-5x",
        library="transformers",
        since="5.0",
        group="config",
        target=f"{MODELING}.compute_default_rope_parameters",
        replace=default_rope_parameters,
        relies=(f"{MODELING}.__init__",),
        signature=("config", ...),
        upstream="none known",
    ),
)
