"""The way through a shared block: which of PyTorch's functions are others on it, and when.

For a token, products go through copies of the weights (`block_token`), attention through a loop in C (`one_query`),
and keys and values grow in place (`growing`); for a prompt, q, k and v are put together (`embedding_half`). Each
computes what PyTorch does; each knows where it has to be PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import block_token, embedding_half, growing, one_query, packed_blocks
from .block_token import Token, running
from .blocked import autocasts
from .linears import Handler, Instead, linear

# Tokens from which on attention alone is worth that every function of PyTorch passes by here, which in NF4 are many.
FEWEST = 512
FEWEST_GROWING = 1024  # and keys and values that grow


@contextmanager
def within(layer: Any, hidden: Tensor, embedding: Tensor, cache: Any) -> Iterator[None]:
    """Around a call of a Zamba2AttentionDecoderLayer.

    hidden, embedding: [batch, tokens, hidden_size], what it is called with. cache: the one of this generation, or None.
    """
    token, found = _gains(layer, hidden, embedding, cache)
    with running(token), Instead(found) if found else nullcontext():
        yield


def _gains(
    layer: Any, hidden: Tensor, embedding: Tensor, cache: Any
) -> tuple[Token | None, dict[Callable[..., Any], Handler]]:
    """What takes the token's products, and which functions are others."""
    found: dict[Callable[..., Any], Handler] = {}
    token: Token | None = None
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if hidden.device.type != "cpu" or watched or autocasts():
        return token, found
    if not torch.is_grad_enabled() and cache is not None:
        token = block_token.token_of(layer, hidden, embedding, cache)
        if token is not None:
            found[F.linear] = linear(token.product, lambda rows: rows == 1)
        before = int(cache.get_seq_length())
        if hidden.shape[1] == 1 and (token is not None or before >= FEWEST):
            found[F.scaled_dot_product_attention] = one_query.attention
        if before >= (FEWEST_GROWING if token is None else growing.FEWEST):
            found[torch.cat] = growing.joined
    if token is None:
        packed_blocks.prompted(layer)
        products = None if torch.is_grad_enabled() else embedding_half.products(layer, hidden, embedding)
        if products is not None:
            found[F.linear] = products
    return token, found
