"""A prompt through a shared block: the embedding's part of q, k and v once per prompt.

q, k and v are products of [hidden state, embedding], normed together. The embedding's half of them is the same at every
depth but for the norm's scale of each token: in 1.2B it is 25 of the block's 109 million multiplications per token, and
spares five depths of six a quarter of theirs, 7% of the whole prompt's. `block_token` does so for a single token.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.utils.weak import WeakIdKeyDictionary  # noqa: TID253

from .blocked import NORM_BLOCK, add_product, in_blocks, is_plain, is_plain_norm, is_unwatched
from .buffers import buffers
from .linears import SHORT, Handler, linear, unasked

FEWEST = 64  # rows from which on it gains
MOST = 4096  # rows that it keeps something for: three times attention_hidden_size numbers for each, per block
_NEAR = 2**-5  # relative, of what is rounded to bfloat16 twice

_products: Any = WeakIdKeyDictionary()  # of embeddings, which live as long as a forward pass: {id of a weight: _Known}


class _Known:
    """scaled: [rows, hidden_size], the embedding times the norm's weight. product: [rows, out_features]."""

    def __init__(self, scaled: Tensor, weight: Tensor) -> None:
        self.scaled = scaled
        self.product = F.linear(scaled, _half(weight))


class _Normed:
    """What `input_layernorm` makes of the rows of [hidden state, embedding], taken apart."""

    def __init__(self, norm: Any, hidden: Tensor, embedding: Tensor) -> None:
        width = hidden.shape[-1]
        squares = []
        for part in (hidden, embedding):
            part = part.reshape(-1, width)
            wide = buffers.take("wide", part, *part.shape, dtype=torch.float32).copy_(part)
            squares.append(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_())
        self.scale = (squares[0] + squares[1]).div_(2 * width).add_(norm.variance_epsilon).rsqrt_()  # [rows, 1]
        self.scaled = wide.mul_(norm.weight[width:]).to(embedding.dtype)

    def makes(self, x: Tensor) -> bool:
        """Whether x [rows, 2 * hidden_size] is that, as far as its last row tells; somebody may have changed it."""
        last = self.scaled[-1].float() * self.scale[-1]
        return torch.allclose(x[-1, len(last) :].float(), last, rtol=_NEAR, atol=0)


def products(layer: Any, hidden: Tensor, embedding: Tensor) -> Handler | None:
    """F.linear for a call of a Zamba2AttentionDecoderLayer.

    hidden, embedding: [batch, tokens, hidden_size], what the layer is called with. None where nothing gains from it.
    """
    rows, width = hidden.shape[:-1].numel(), hidden.shape[-1]
    if not FEWEST <= rows <= MOST or hidden.shape != embedding.shape or hidden.dtype not in SHORT:
        return None
    attention, norm = layer.self_attn, layer.input_layernorm
    linears = attention.q_proj, attention.k_proj, attention.v_proj
    if (
        not (is_unwatched(attention) and is_unwatched(norm) and is_plain_norm(norm, hidden))
        or norm.weight.shape != (2 * width,)
        or not all(is_plain(module, hidden) and module.in_features == 2 * width for module in linears)
    ):
        return None
    weights = {id(module.weight) for module in linears}
    known: dict[int, _Known] = _products.setdefault(embedding, {})
    normed: list[_Normed] = []

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        if id(weight) not in weights:
            return None
        if not normed:
            normed.append(_Normed(norm, hidden, embedding))
        apart = normed[0]
        if not apart.makes(x):
            return None
        found = known.get(id(weight))
        if found is None or not torch.equal(found.scaled, apart.scaled):
            found = known[id(weight)] = _Known(apart.scaled, weight)
        with unasked(x):
            result = torch.empty_like(found.product)
            for some, scale, place in in_blocks(NORM_BLOCK, found.product, apart.scale, result):
                wide = buffers.take("scaled half", x, *some.shape, dtype=torch.float32)
                place.copy_(torch.mul(some, scale, out=wide))
        add_product(result, x[:, :width], weight[:, :width])
        return result if bias is None else result.add_(bias)

    return linear(product, lambda rows: rows >= FEWEST)


def _half(weight: Tensor) -> Tensor:
    """The columns that meet the embedding."""
    return weight[:, weight.shape[1] // 2 :]
