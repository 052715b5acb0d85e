"""The way through a shared block: which of PyTorch's functions are others on it, and when.

For a token, products go through copies of the weights (`packed_blocks`), attention through a loop in C (`one_query`),
and keys and values grow in place (`growing`); for a prompt, q, k and v are put together (`embedding_half`). Each
computes what PyTorch does; each knows where it has to be PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import embedding_half, growing, one_query, packed_blocks
from .linears import Handler

# Tokens from which on attention alone is worth that every function of PyTorch passes by here, which in NF4 are many.
FEWEST = 512


def handlers(layer: Any, hidden: Tensor, embedding: Tensor, cache: Any) -> dict[Callable[..., Any], Handler]:
    """For `linears.Instead`, what a call of a Zamba2AttentionDecoderLayer gains from; empty where nothing.

    hidden, embedding: [batch, tokens, hidden_size], what it is called with. cache: the one of this generation, or None.
    """
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return {}
    found: dict[Callable[..., Any], Handler] = {}
    if not torch.is_grad_enabled() and cache is not None:
        products = packed_blocks.products(layer, hidden, embedding, cache)
        if products is not None:
            found[F.linear] = products
        before = int(cache.get_seq_length())
        if hidden.shape[1] == 1 and (products is not None or before >= FEWEST):
            found[F.scaled_dot_product_attention] = one_query.attention
        if before >= growing.FEWEST:
            found[torch.cat] = growing.joined
    if F.linear not in found:
        packed_blocks.prompted(layer)
        products = None if torch.is_grad_enabled() else embedding_half.products(layer, hidden, embedding)
        if products is not None:
            found[F.linear] = products
    return found
