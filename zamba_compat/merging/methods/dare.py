"""DARE: of each difference from the base every element stays with the probability `density`, and is rescaled.

See `task_arithmetic` for the sum; dare_ties wants the signs to agree. What is drawn depends on the seed, the tensor's
name and the model's place among the parents, and on nothing else.
Source: Yu et al., "Language models are super Mario", arXiv 2311.03099; mergekit/sparsify.py, 0.1.5, `bernoulli`, which
rescales to the l1 norm from before, where the paper divides by the density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zamba_compat.merging.streamed import Cut, bernoulli

from .task_arithmetic import Mask, Sparsifier, TaskArithmetic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Random:
    """Keeps every element with one probability. Attributes: density; key: of what is drawn."""

    density: float
    key: str

    def width(self, shape: Sequence[int]) -> int:
        return 1

    def mask(self, cut: Cut) -> Mask:
        def chosen(number: int, delta: Tensor) -> Tensor:
            return bernoulli(self.key, number, delta.numel(), self.density).reshape(delta.shape)

        return chosen


@dataclass(frozen=True)
class Dare(TaskArithmetic):
    """See the module."""

    def sparsifier(self, values: Mapping[str, float], key: str, where: str) -> Sparsifier:
        return Random(values["density"], key)


_URL = "https://arxiv.org/abs/2311.03099"
METHOD = Dare("Linear DARE", _URL, rescale=True)
WITH_TIES = Dare("DARE TIES", _URL, rescale=True, agree=True)
