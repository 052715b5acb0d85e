"""The weighted mean: sum of w_i x_i, divided by the sum of w_i unless normalize is false.

Source: Wortsman et al., "Model soups", arXiv 2203.05482; mergekit/merge_methods/linear.py, 0.1.5, which adds in the
tensors' own dtype where this adds in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zamba_compat.errors import ConfigError
from zamba_compat.merging.sums import Sum, Weighted

from .base import Look, Share, number, numbers_only

if TYPE_CHECKING:
    from zamba_compat.merging.settings import Setting


@dataclass(frozen=True)
class Linear:
    """See the module."""

    title: str = "Linear"
    url: str = "https://arxiv.org/abs/2203.05482"
    parameters: frozenset[str] = frozenset({"weight", "normalize"})

    def check(self, name: str, setting: Setting, where: str) -> None:
        numbers_only(name, setting, where)

    def share(self, look: Look, models: Sequence[str], base: str, own_base: str, where: str) -> Share | None:
        if len(models) == 1:
            return Share({models[0]: 1.0}, normalize=True)
        found = {model: look("weight", model) for model in models}
        if all(weight is None for weight in found.values()):
            return None
        missing = [model for model, weight in found.items() if weight is None]
        if missing:
            raise ConfigError(
                f"There is no weight for {', '.join(missing)}.",
                where=where,
                remedy="Give every model a weight for the same tensors; 0 leaves one out. base_model takes part, too.",
            )
        normalize = look("normalize", None)
        weights = {model: number(weight) for model, weight in found.items() if weight is not None}
        return Share(weights, normalize=True if normalize is None else bool(normalize))

    def kept(self, base: str) -> Share:
        return Share({base: 1.0}, normalize=True)

    def sum(self, share: Share, base: str, where: str) -> tuple[tuple[str, ...], Sum | None]:
        total = sum(share.weights.values()) if share.normalize else 1.0
        if total == 0 or not any(share.weights.values()):
            raise ConfigError("The weights add up to 0.", where=where, remedy="Give weights with another sum.")
        return weighted({model: weight / total for model, weight in share.weights.items()})


def weighted(coefficients: dict[str, float]) -> tuple[tuple[str, ...], Sum | None]:
    """A sum without the models that add nothing to it."""
    used = {model: coefficient for model, coefficient in coefficients.items() if coefficient}
    if list(used.values()) == [1.0]:
        return tuple(used), None
    return tuple(used), Weighted(tuple(used.values()))
