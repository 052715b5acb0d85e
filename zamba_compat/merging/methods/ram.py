"""RAM: of each element the mean of the differences from the base that are larger than epsilon, over those models alone.

So what one model alone has changed is taken whole. ramplus_tl multiplies that by 1 + r min(rho, alpha), rho being how
many elements the model has changed together with others, over how many it has changed alone, in this tensor.
Source: "Reinforced Agent Merging", arXiv 2601.13572; mergekit/merge_methods/ram.py, 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zamba_compat.merging.streamed import Cut
from zamba_compat.merging.sums import Run, Sum

from .base import About, Method, Parameter, Share

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Changed:
    """Attributes: see the module; r = 0 is RAM."""

    epsilon: float
    r: float
    alpha: float

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        import torch

        cut = Cut.of(tensors, run)
        factors = torch.ones(len(tensors) - 1, 1, 1)
        if self.r:

            def counts(number: int) -> Tensor:
                changed, found = self._changed(cut.deltas(number)[1])
                return torch.stack([(changed & (found > 1)).sum((1, 2)), (changed & (found == 1)).sum((1, 2))])

            together, alone = torch.stack(list(cut.each(counts))).sum(0).float()
            factors[:, 0, 0] = 1 + self.r * (together / alone.clamp(min=self.epsilon)).clamp(0, self.alpha)

        def one(number: int) -> Tensor:
            base, deltas = cut.deltas(number)
            changed, found = self._changed(deltas)
            factor = torch.where(found == 1, factors, 1 / found.clamp(min=1))
            return base.add_(deltas.mul_(changed).mul_(factor).sum(0))

        yield from cut.write(one)

    def _changed(self, deltas: Tensor) -> tuple[Tensor, Tensor]:
        changed = deltas.abs() > self.epsilon
        return changed, changed.sum(0)


@dataclass(frozen=True)
class Ram(Method):
    """See the module."""

    title: str = "Reinforced Agent Merging"
    url: str = "https://arxiv.org/abs/2601.13572"
    takes: Mapping[str, Parameter] = field(default_factory=lambda: {"epsilon": Parameter(1e-5, least=0)})

    count: tuple[int, int | None] = (0, None)

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        if len(share.models) == 1:
            return share.models, None
        values = share.values
        return share.models, Changed(values["epsilon"], values.get("r", 0.0), values.get("alpha", 0.0))


METHOD = Ram()
PLUS = Ram(
    "Reinforced Agent Merging Plus (Tensor-Local)",
    takes={"r": Parameter(0.1), "alpha": Parameter(0.2, least=0), "epsilon": Parameter(1e-5, least=0)},
)
