"""The Karcher mean: the direction whose squared angles to all models' are smallest, with the mean of their lengths.

m <- exp_m(sum of log_m(u_i) / k), from the normalised mean of the directions u_i on, at most max_iter times, until a
step is shorter than tol. The base takes part like the other models. What has no length has no direction, and counts for
the length alone. m stays a combination of the u_i, so their dot products are all that is read of the tensors.
Source: Karcher, Comm. Pure Appl. Math. 1977; arXiv 2603.04972; mergekit/merge_methods/karcher.py, 0.1.5.
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


@dataclass(frozen=True)
class Mean:
    """Attributes: steps: at most; tol: a length or an angle that is none."""

    steps: int
    tol: float

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        import torch

        products = Cut.of(tensors, run).gram()
        lengths = products.diagonal().sqrt()
        used = lengths > self.tol
        if not used.all():
            run.tell("zero", int((~used).sum()))
        total = torch.zeros(len(tensors), dtype=torch.float64)
        if used.any():
            cosines = (products / torch.outer(lengths, lengths))[used][:, used]
            total[used] = self._direction(cosines) / lengths[used] * lengths.mean()
        yield from Weighted(tuple(total.tolist())).pieces(tensors, run)

    def _direction(self, cosines: Tensor) -> Tensor:
        """The mean's coefficients of the directions, from their cosines [k, k]."""
        import torch

        def length(of: Tensor) -> float:
            return float((of @ cosines @ of).clamp(min=0).sqrt())

        count = len(cosines)
        mean = torch.full((count,), 1 / count, dtype=torch.float64)
        first = length(mean)
        mean = torch.eye(count, dtype=torch.float64)[0] if first < self.tol else mean / first
        for _ in range(self.steps):
            dots = (cosines @ mean).clamp(-1, 1)
            angles = torch.arccos(dots)
            part = torch.where(angles < self.tol, 0.0, angles / torch.sin(angles)) / count
            step = part - (part * dots).sum() * mean
            far = length(step)
            if far < self.tol:
                break
            mean = mean * torch.cos(torch.tensor(far)) + step * (torch.sin(torch.tensor(far)) / far)
            mean = mean / max(length(mean), self.tol)
        return mean


@dataclass(frozen=True)
class Karcher(Method):
    """See the module."""

    title: str = "Karcher Mean"
    url: str = "https://arxiv.org/abs/2603.04972"
    takes: Mapping[str, Parameter] = field(
        default_factory=lambda: {"max_iter": Parameter(10, least=0), "tol": Parameter(1e-5, least=0)}
    )
    base: str = ""

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        if len(share.models) == 1:
            return share.models, None
        return share.models, Mean(int(share.values["max_iter"]), share.values["tol"])


METHOD = Karcher()
