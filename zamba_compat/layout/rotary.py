"""The rotary base that a Zamba2 config means.

Source: base * 8 ** (d / (d - 2)), d = 2 * hidden_size / num_attention_heads: NTK-aware scaling by a = 8 as in
Zyphra/transformers_zamba2, modeling_zamba2.py.
"""

from __future__ import annotations

import math
from typing import Any

PUBLISHED_BASE = 10000.0


def stored_theta(config: Any) -> float:
    """The rotary base that a transformers config stores, of whatever release."""
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("rope_theta", getattr(config, "rope_theta", PUBLISHED_BASE)))


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
