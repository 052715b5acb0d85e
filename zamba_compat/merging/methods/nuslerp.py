"""NuSLERP: spherical interpolation of two models' tensors, or of their differences from the base where there is one.

sin((1 - t) w) / sin(w) v_0 + sin(t w) / sin(w) v_1, w the angle between them, t = w_1 / (w_0 + w_1), and 1/2 where the
weights add up to 0. The angle is that of the whole tensors; with nuslerp_flatten: false that of every row (the last
dimension), and with nuslerp_row_wise too that of every column (the first). Where |cos w| is 1 in float32 they are added
linearly.
Source: mergekit/merge_methods/nuslerp.py, 0.1.5; see `slerp` for the formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zamba_compat.merging.streamed import Cut
from zamba_compat.merging.sums import Run, Sum, Weighted

from .base import About, Method, Parameter, Share

if TYPE_CHECKING:
    from torch import Tensor

_NO_SUM, _NO_LENGTH, _PARALLEL = 1e-6, 1e-7, 1e-16  # mergekit's


@dataclass(frozen=True)
class Angles:
    """Attributes: t; by "all", "rows" or "columns"; deltas: the first tensor is the base."""

    t: float
    by: str
    deltas: bool

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        shape = tensors[0].shape
        by = self.by if len(shape) > 1 else "all"
        cut = Cut.of(tensors, run, {"all": 1, "rows": shape[-1] if shape else 1, "columns": math.prod(shape[1:])}[by])
        if by == "all":
            gram = cut.gram(deltas=self.deltas)
            first, second = map(float, self._weights(gram[0, 0], gram[0, 1], gram[1, 1]))
            coefficients = (1 - first - second, first, second) if self.deltas else (first, second)
            yield from Weighted(coefficients).pieces(tensors, run)
            return
        found = None
        if by == "columns":
            products = cut.each(lambda number: self._products(self._pair(cut, number)[1], by))
            found = self._weights(*(sum(parts[1:], parts[0]) for parts in zip(*products, strict=True)))

        def one(number: int) -> Tensor:
            base, pair = self._pair(cut, number)
            first, second = self._weights(*self._products(pair, by)) if found is None else found
            total = pair[0].mul_(first).add_(pair[1].mul_(second))
            return total if base is None else total.add_(base)

        yield from cut.write(one)

    def _pair(self, cut: Cut, number: int) -> tuple[Tensor | None, Tensor]:
        return cut.deltas(number) if self.deltas else (None, cut.piece(number))

    def _products(self, pair: Tensor, by: str) -> list[Tensor]:
        import torch

        a, b = pair
        dim, keep = (1, True) if by == "rows" else (0, False)
        pairs = ((a, a), (a, b), (b, b))
        return [torch.sum(x * y, dim, keepdim=keep, dtype=torch.float64) for x, y in pairs]

    def _weights(self, aa: Tensor, ab: Tensor, bb: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        lengths = aa.sqrt().clamp(min=_NO_LENGTH) * bb.sqrt().clamp(min=_NO_LENGTH)
        cosine = (ab / lengths).clamp(-1, 1).float()
        linear = 1 - cosine.square() <= _PARALLEL
        angle = torch.acos(torch.where(linear, 0.0, cosine.double()))
        first, second = (
            torch.where(linear, part, torch.sin(part * angle) / torch.sin(angle)).float()
            for part in (1 - self.t, self.t)
        )
        return first, second


@dataclass(frozen=True)
class NuSlerp(Method):
    """See the module."""

    title: str = "NuSLERP"
    url: str = "https://github.com/arcee-ai/mergekit"
    takes: Mapping[str, Parameter] = field(
        default_factory=lambda: {
            "weight": Parameter(None, each=True),
            "nuslerp_row_wise": Parameter(False),
            "nuslerp_flatten": Parameter(True),
        }
    )
    main: str = "weight"
    base: str = "optional"
    count: tuple[int, int | None] = (2, 2)

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        first, second = share.weights.values()
        total = first + second
        t = 0.5 if abs(total) < _NO_SUM else second / total
        by = "all" if share.values["nuslerp_flatten"] else "columns" if share.values["nuslerp_row_wise"] else "rows"
        return share.models, Angles(t, by, len(share.models) == 3)


METHOD = NuSlerp()
