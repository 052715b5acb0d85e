"""Arcee Fusion: the other model's elements where they are important, the base's everywhere else.

Important is |b - a| KL(softmax(b) + 1e-8 || softmax(a) + 1e-8), the divergence that of the row (the last dimension), of
at least the median plus 1.5 times the distance of the quartiles. These are those of all elements, where mergekit draws
a million at random from a larger tensor, and has another result in every run.
Source: arcee.ai; mergekit/merge_methods/arcee_fusion.py, 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zamba_compat.merging.streamed import Cut, marks
from zamba_compat.merging.sums import Run, Sum

from .base import About, Method, Parameter, Share

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-8  # mergekit's


@dataclass(frozen=True)
class Fusion:
    """See the module."""

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        cut = Cut.of(tensors, run, tensors[0].shape[-1] if tensors[0].dim() else 1)
        if not cut.numel:
            return
        divergences = list(cut.each(lambda number: divergence(*cut.piece(number))))  # a number for each row

        def importance(of: Cut, number: int) -> Tensor:
            apart = divergences[number] if of is cut else divergence(*of.piece(number))
            return of.deltas(number)[1][0].abs_().mul_(apart)

        ranks = [int(part * (cut.numel - 1)) for part in (0.25, 0.5, 0.75)]
        low, median, high = (mark.value for mark in marks(cut, importance, ranks, ties=False))

        def one(number: int) -> Tensor:
            base, (delta,) = cut.deltas(number)
            important = delta.abs().mul_(divergences[number]) >= median + 1.5 * (high - low)
            return base.add_(delta.mul_(important))

        yield from cut.write(one)


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL of every row [rows, width]: [rows, 1]; step by step as mergekit, since near 0 the rounding decides."""
    import torch

    p = torch.softmax(b, dim=-1).add_(_EPS)
    q = torch.softmax(a, dim=-1).add_(_EPS)
    return torch.sum(p * torch.log(p / q), dim=-1, keepdim=True)


@dataclass(frozen=True)
class ArceeFusion(Method):
    """See the module."""

    title: str = "Arcee Fusion"
    url: str = "https://arcee.ai"
    takes: Mapping[str, Parameter] = field(default_factory=dict)
    count: tuple[int, int | None] = (1, 1)

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        return share.models, Fusion()


METHOD = ArceeFusion()
