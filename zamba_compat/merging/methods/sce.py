"""SCE: select the elements in which the models differ most, calculate each one's weight, erase what is outvoted.

base + sum(w_i d_i e_i) / sum(w_i e_i), d_i the difference from the base where its variance over the models is among the
int(select_topk n) largest (of n that are not 0; of equal ones the later are taken), w_i its mean square over the
tensor, divided by their sum, and e_i whether it has the sign of the sum of the d_i.
Source: Wan et al., "FuseChat", arXiv 2408.07990; mergekit/merge_methods/sce.py, 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zamba_compat.merging.streamed import Cut, Mark, keep, marks
from zamba_compat.merging.sums import Run, Sum

from .base import About, Method, Parameter, Share

if TYPE_CHECKING:
    from torch import Tensor

_NO_SUM = 1e-6  # mergekit's: such weights are taken to be equal, and divide nothing


@dataclass(frozen=True)
class Erase:
    """Attribute: select: the share of elements that are taken."""

    select: float

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        import torch

        cut = Cut.of(tensors, run)
        mark = self._mark(cut)

        def selected(number: int) -> tuple[Tensor, Tensor]:
            base, deltas = cut.deltas(number)
            if self.select < 1:
                keep(deltas, mark.above(number, variance(deltas))) if mark else deltas.mul_(0.0)
            return base, deltas

        def squares(number: int) -> Tensor:
            return selected(number)[1].square().sum((1, 2), dtype=torch.float64)

        mean = torch.stack(list(cut.each(squares))).sum(0) / max(1, cut.numel)
        total = float(mean.sum())
        even = torch.full_like(mean, 1 / len(mean))
        weights = (even if abs(total) < _NO_SUM else mean / total).float().reshape(-1, 1, 1)

        def one(number: int) -> Tensor:
            base, deltas = selected(number)
            sign = torch.copysign(torch.ones(()), deltas.sum(0).add_(0.0))  # 0 is positive, and so is -0
            along = deltas.mul_(sign).clamp_(min=0)  # the size of those that have the sign; NaN stays NaN
            total = (along * weights).sum(0).mul_(sign)
            return base.add_(total.div_(along.sign_().mul_(weights).sum(0).clamp_(min=_NO_SUM)))

        yield from cut.write(one)

    def _mark(self, cut: Cut) -> Mark | None:
        if self.select >= 1:
            return None
        import torch

        def spread(of: Cut, number: int) -> Tensor:
            return variance(of.deltas(number)[1])

        different = sum(cut.each(lambda number: int(spread(cut, number).count_nonzero())))
        count = int(torch.tensor(different) * self.select)  # in float32, as mergekit
        return marks(cut, spread, [cut.numel - count])[0] if count > 0 else None


def variance(deltas: Tensor) -> Tensor:
    """Over the models [k, rows, width], summed in float64 as torch.var does, which takes sixty times as long."""
    apart = deltas.double()
    apart -= apart.mean(0)
    return apart.square_().mean(0).float()


@dataclass(frozen=True)
class Sce(Method):
    """See the module."""

    title: str = "SCE"
    url: str = "https://arxiv.org/abs/2408.07990"
    takes: Mapping[str, Parameter] = field(
        default_factory=lambda: {"int8_mask": Parameter(False), "select_topk": Parameter(1.0, least=0)}
    )

    count: tuple[int, int | None] = (0, None)

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        if len(share.models) == 1:
            return share.models, None
        return share.models, Erase(share.values["select_topk"])


METHOD = Sce()
