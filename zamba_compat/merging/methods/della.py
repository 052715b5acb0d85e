"""DELLA: of each difference from the base large elements stay with a higher probability than small ones.

In a row of n elements the probability goes from density - epsilon (the smallest magnitude) to density + epsilon (the
largest), in n equal steps by rank; of equal magnitudes the later has the higher rank. What has more than two dimensions
is a matrix whose rows are its first dimension, and the only element of a row stays with the probability density. See
`task_arithmetic` for the sum, and `dare` for what is drawn; della wants the signs to agree, della_linear does not.
Source: Deep et al., "DELLA-Merging", arXiv 2406.11617; mergekit/sparsify.py, 0.1.5, `della_magprune`, which takes the
second dimension for the row, and divides 0 by 0 where it has one element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zamba_compat.errors import ConfigError
from zamba_compat.merging.streamed import Cut, uniform

from .base import Parameter
from .task_arithmetic import Mask, Sparsifier, TaskArithmetic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ByRank:
    """Keeps an element with a probability by its rank in its row. Attributes: density, epsilon; key: what is drawn."""

    density: float
    epsilon: float
    key: str

    def width(self, shape: Sequence[int]) -> int:
        return math.prod(shape[1:]) if len(shape) > 1 else shape[0]

    def mask(self, cut: Cut) -> Mask:
        import torch

        if self.density <= 0:
            return lambda number, delta: torch.zeros(delta.shape, dtype=torch.bool)

        def chosen(number: int, delta: Tensor) -> Tensor:
            rank = ranks(delta) / (delta.shape[1] - 1) if delta.shape[1] > 1 else 0.5
            probabilities = (self.density - self.epsilon) + rank * 2 * self.epsilon
            return uniform(self.key, number, delta.numel()).reshape(delta.shape) < probabilities

        return chosen


def ranks(delta: Tensor) -> Tensor:
    """The rank of every magnitude in its row [rows, width], from 0, of equal ones the earlier first; float32."""
    import torch

    # A magnitude's bits above its place: sorting integers without a second array is several times faster.
    keys = delta.abs().view(torch.int32).to(torch.int64) << 32
    places = torch.arange(delta.shape[1])
    keys += places
    keys.numpy().sort(axis=1)
    order = keys.bitwise_and_(2**32 - 1)
    return torch.empty_like(delta).scatter_(1, order, places.to(delta.dtype).expand_as(delta))


@dataclass(frozen=True)
class Della(TaskArithmetic):
    """See the module."""

    def sparsifier(self, values: Mapping[str, float], key: str, where: str) -> Sparsifier:
        density, epsilon = values["density"], values["epsilon"]
        if density > 0 and not 0 < density - epsilon <= density + epsilon < 1:
            raise ConfigError(
                f"density {density:g} and epsilon {epsilon:g}: probabilities would be outside of (0, 1).",
                where=where,
                remedy="Choose epsilon so that density - epsilon and density + epsilon lie between 0 and 1.",
            )
        return ByRank(density, epsilon, key)


_URL, _OWN = "https://arxiv.org/abs/2406.11617", {"epsilon": Parameter(0.15, each=True, least=0)}
METHOD = Della("DELLA", _URL, own=_OWN, agree=True, normalize=True, rescale=True)
LINEAR = Della("Linear DELLA", _URL, own=_OWN, rescale=True)
