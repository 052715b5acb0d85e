"""NearSwap: each element goes to the other model's where the two are closer than t, and less far where they are not.

w b + (1 - w) a, w = min(1, t / max(|a - b|, 1e-6)), a the base.
Source: huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001; mergekit/merge_methods/nearswap.py, 0.1.5.
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

_CLOSEST = 1e-6  # mergekit's


@dataclass(frozen=True)
class Near:
    """Attribute: t: see the module."""

    t: float

    def pieces(self, tensors: Sequence[Tensor], run: Run) -> Iterator[Tensor]:
        import torch

        cut = Cut.of(tensors, run)

        def one(number: int) -> Tensor:
            a, b = cut.piece(number)
            weight = torch.sub(a, b).abs_().clamp_(min=_CLOSEST).reciprocal_().mul_(self.t).clamp_(0, 1)
            made: Tensor = a.lerp_(b, weight)
            return made

        yield from cut.write(one)


@dataclass(frozen=True)
class NearSwap(Method):
    """See the module."""

    title: str = "NearSwap"
    url: str = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    takes: Mapping[str, Parameter] = field(default_factory=lambda: {"t": Parameter(None, least=0)})
    main: str = "t"
    count: tuple[int, int | None] = (1, 1)

    def kept(self, base: str) -> Share:
        return Share(values={"t": 0.0})

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        t = share.values["t"]
        return (share.models, Near(t)) if t else ((about.base,), None)


METHOD = NearSwap()
