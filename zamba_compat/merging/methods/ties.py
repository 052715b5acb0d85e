"""TIES: of each difference from the base the largest stay, and of these what has the sign of their weighted sum.

Of n elements max(1, int(density n)) stay, and none where density is 0. Of equal magnitudes the later stay, where
mergekit says nothing. See `task_arithmetic` for the sum.
Source: Yadav et al., "TIES-Merging", arXiv 2306.01708; mergekit/sparsify.py, 0.1.5, `magnitude`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zamba_compat.merging.streamed import Cut, marks

from .task_arithmetic import Mask, Sparsifier, TaskArithmetic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Between:
    """Keeps `share` of the elements below the `top` share of largest ones; ranks are by magnitude."""

    share: float
    top: float = 0.0
    least: int = 0

    def width(self, shape: Sequence[int]) -> int:
        return 1

    def mask(self, cut: Cut) -> Mask:
        import torch

        count = min(cut.numel, max(self.least, int(self.share * cut.numel)) if self.share > 0 else 0)
        if not count:
            return lambda number, delta: torch.zeros(delta.shape, dtype=torch.bool)
        low = max(0, cut.numel - count - int(self.top * cut.numel))
        high = low + count
        ranks = [rank for rank in (low, high) if rank < cut.numel]
        found = dict(zip(ranks, marks(cut, lambda of, number: of.deltas(number)[1][0].abs_(), ranks), strict=True))

        def chosen(number: int, delta: Tensor) -> Tensor:
            sizes = delta.abs()
            keep = found[low].above(number, sizes)
            return keep & ~found[high].above(number, sizes) if high in found else keep

        return chosen


@dataclass(frozen=True)
class Ties(TaskArithmetic):
    """See the module."""

    def sparsifier(self, values: Mapping[str, float], key: str, where: str) -> Sparsifier:
        return Between(values["density"], least=1)


METHOD = Ties("TIES", "https://arxiv.org/abs/2306.01708", agree=True, normalize=True)
