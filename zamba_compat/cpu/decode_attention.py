"""Attention of one token, by the loop in C where there is one.

PyTorch's kernel for a CPU is made for many queries. With one it reads keys and values in bfloat16 at 4 GB/s of the
memory's 35: 3.7 ms for 1,024 tokens of 32 heads of 128, on two cores of an AMD EPYC with AVX512-BF16, and 15 for 4,096.
"""

from __future__ import annotations

import math
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .native.attention import fit, loop
from .workspace import buffers


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """As F.scaled_dot_product_attention; None where it is not for here.

    query: [batch, heads, 1, head_dim]. key, value: [batch, heads, tokens, head_dim], with enable_gqa of a part of the
    heads. attn_mask: [batch, 1, 1, tokens], added to the scores, or bool.
    """
    found = loop()
    if (
        found is None
        or dropout_p
        or is_causal  # of one query it would leave the first key
        or torch.is_grad_enabled()
        or not all(type(tensor) is Tensor for tensor in (query, key, value))
        or not fit(query, key, value)
        or (key.shape[1] != query.shape[1] and not enable_gqa)
    ):
        return None
    (batch, heads, _, head_dim), tokens = query.shape, key.shape[2]
    mask = None
    if attn_mask is not None:
        if attn_mask.shape != (batch, 1, 1, tokens) or attn_mask.device.type != "cpu":
            return None
        mask = attn_mask.view(batch, tokens)
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else mask.float()
        if not bool((mask.amax(-1) > -torch.inf).all()):  # a row that sees nothing
            return None
        mask = mask.contiguous()
    room = buffers.take("attention", query, batch * heads, tokens + 2 * head_dim, dtype=torch.float32)
    out = torch.empty(batch, heads, 1, head_dim, dtype=query.dtype)
    found.attend(query, key, value, mask, 1 / math.sqrt(head_dim) if scale is None else float(scale), room, out)
    return out
