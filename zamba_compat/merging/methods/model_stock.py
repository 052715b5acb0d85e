"""Model Stock: from the base towards the mean of k models, as far as the angles between their differences say.

t mean(x_i) + (1 - t) base, t = k c / (1 + (k - 1) c), c the mean cosine of all pairs of differences from the base; with
filter_wise every row (the last dimension) has a t of its own. Where the denominator vanishes the base stays.
Source: Jang et al., "Model Stock", arXiv 2403.19522; mergekit/merge_methods/model_stock.py, 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zamba_compat.merging.streamed import Cut
from zamba_compat.merging.sums import Run, Sum, Weighted

from .base import About, Method, Parameter, Share

if TYPE_CHECKING:
    from torch import Tensor

_NONE = 1e-6  # mergekit's: a product of lengths, a denominator


@dataclass(frozen=True)
class Stock:
    """Attribute: rows: each for itself."""

    rows: bool

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        count = len(tensors) - 1
        if not self.rows:
            t = float(ratio(Cut.of(tensors, run).gram(deltas=True)))
            yield from Weighted((1 - t, *[t / count] * count)).pieces(tensors, run)
            return
        cut = Cut.of(tensors, run, tensors[0].shape[-1] if tensors[0].dim() else 1)

        def one(number: int) -> Tensor:
            base, deltas = cut.deltas(number)
            rows = deltas.transpose(0, 1).double()  # t amplifies the rounding of differences that cancel each other
            t = ratio(rows @ rows.transpose(1, 2)).float()
            return base.addcmul_(deltas.mean(0), t.unsqueeze(-1))

        yield from cut.write(one)


def ratio(products: Tensor) -> Tensor:
    """t, from the dot products of all differences [..., k, k]."""
    import torch

    count = products.shape[-1]
    lengths = products.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = (lengths.unsqueeze(-1) * lengths.unsqueeze(-2)).clamp(min=_NONE)
    first, second = torch.triu_indices(count, count, 1)
    cosine = (products / scale).clamp(-1, 1)[..., first, second].mean(-1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _NONE
    return torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, denominator))


@dataclass(frozen=True)
class ModelStock(Method):
    """See the module."""

    title: str = "Model Stock"
    url: str = "https://arxiv.org/abs/2403.19522"
    takes: Mapping[str, Parameter] = field(default_factory=lambda: {"filter_wise": Parameter(False)})
    count: tuple[int, int | None] = (2, None)

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        return share.models, Stock(bool(share.values["filter_wise"]))


METHOD = ModelStock()
