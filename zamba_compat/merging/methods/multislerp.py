"""Multi-SLERP: the weighted mean of directions, with that of lengths; of differences where there is a base.

sum(w_i |v_i|) m / |m|, m = sum(w_i v_i / |v_i|), the weights divided by their sum unless normalize_weights is false.
mergekit goes to the tangent space at m, adds there and comes back; its sum there is 0 whatever the tensors are, since m
is where the tangents' weighted mean vanishes, and so what it computes is m up to rounding. One model is itself.
Source: goddard.blog/posts/multislerp-wow-what-a-cool-idea; mergekit/merge_methods/multislerp.py, 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zamba_compat.errors import ConfigError
from zamba_compat.merging.streamed import Cut
from zamba_compat.merging.sums import Run, Sum, Weighted

from .base import About, Method, Parameter, Share

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Directions:
    """Attributes: weights; eps: added to lengths; deltas: the first tensor is the base; where: for errors."""

    weights: tuple[float, ...]
    eps: float
    deltas: bool
    where: str

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        import torch

        products = Cut.of(tensors, run).gram(deltas=self.deltas)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        lengths = products.diagonal().sqrt()
        mean = weights / (lengths + self.eps)
        length = float((mean @ products @ mean).clamp(min=0).sqrt())
        if length < self.eps:
            if not lengths.any():
                run.tell("zero", 1)
            elif len(self.weights) > 2:
                raise ConfigError(
                    "The weighted directions add up to 0.", where=self.where, remedy="Change the weights."
                )
            mean = weights  # as in mergekit, for two
        else:
            mean *= (weights * lengths).sum() / length
        yield from Weighted(coefficients(mean.tolist(), deltas=self.deltas)).pieces(tensors, run)


def coefficients(found: Sequence[float], *, deltas: bool) -> tuple[float, ...]:
    """Those of the tensors, from those of their differences from the first one."""
    return (1.0 - sum(found), *found) if deltas else tuple(found)


@dataclass(frozen=True)
class MultiSlerp(Method):
    """See the module."""

    title: str = "Multi-SLERP"
    url: str = "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    takes: Mapping[str, Parameter] = field(
        default_factory=lambda: {
            "weight": Parameter(None, each=True),
            "normalize_weights": Parameter(True),
            "eps": Parameter(1e-8, least=0),
        }
    )
    main: str = "weight"
    base: str = "optional"

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        if len(share.weights) == 1:
            return tuple(share.weights), None
        total = sum(share.weights.values()) if share.values["normalize_weights"] else 1.0
        if not total:
            raise ConfigError("The weights add up to 0.", where=about.where, remedy="Give weights with another sum.")
        weights = tuple(weight / total for weight in share.weights.values())
        deltas = len(share.models) > len(weights)
        return share.models, Directions(weights, share.values["eps"], deltas, about.where)


METHOD = MultiSlerp()
