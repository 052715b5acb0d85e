"""Rescale the rotary base of use_long_context when it is used, once, and never store it.

Symptom:  4.x: each save and load multiplies rope_theta again (85,550 -> 731,886). 5.x: rope_theta is never rescaled,
          logits off by several percent. Both silent.
Cause:    4.x rescales in Zamba2Config.__init__ and saves the product; 5.x dropped the rescaling with rope_parameters.
Source:   base * 8 ** (d / (d - 2)), d = 2 * hidden_size / num_attention_heads: NTK-aware scaling by a = 8 as in
          Zyphra/transformers_zamba2, modeling_zamba2.py.
Upstream: none known.
Goes:     when upstream rescales in the rotary embedding.
"""

from __future__ import annotations

import math
from typing import Any

from zamba_compat.adapters import Adapter

PUBLISHED_BASE = 10000.0


def rescaled_theta(config: Any, theta: float) -> float:
    """The rotary base that `config` means, from the one it stores.

    A stored base that is exactly the published one rescaled n times was written by 4.x after n loads; it stands for the
    published one.
    """
    if not (config.use_mem_rope and config.use_long_context):
        return theta
    head_dim = config.attention_head_dim
    factor = float(8 ** (head_dim / (head_dim - 2)))
    times = math.log(theta / PUBLISHED_BASE) / math.log(factor)
    if round(times) >= 1 and math.isclose(times, round(times), abs_tol=1e-6):
        import logging

        logging.getLogger("zamba_compat").warning(
            "rope_theta %.1f is %.0f rescaled %d times for use_long_context, as transformers 4.x saves it; reading it "
            "as %.0f.",
            theta,
            PUBLISHED_BASE,
            round(times),
            PUBLISHED_BASE,
        )
        theta = PUBLISHED_BASE
    return theta * factor


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
        requires="transformers>=4.49,<5",
        target="transformers.models.zamba2.configuration_zamba2:Zamba2Config.__init__",
        replace=config_init,
        upstream="none known",
        ends="continued by zamba2-long-context-5x",
    ),
    Adapter(
        name="zamba2-long-context-4x",
        requires="transformers>=4.49,<5",
        target=f"{MODELING}.__init__",
        replace=rotary_init,
        signature=("self", "config", ...),
        upstream="none known",
        ends="continued by zamba2-long-context-5x",
    ),
    Adapter(
        name="zamba2-long-context-5x",
        requires="transformers>=5.0,<5.24",
        target=f"{MODELING}.compute_default_rope_parameters",
        replace=default_rope_parameters,
        signature=("config", ...),
        upstream="none known",
        ends=None,
    ),
)
