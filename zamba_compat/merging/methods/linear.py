"""The weighted mean: sum of w_i x_i, divided by the sum of w_i unless normalize is false.

Source: Wortsman et al., "Model soups", arXiv 2203.05482; mergekit/merge_methods/linear.py, 0.1.5, which adds in the
tensors' own dtype where this adds in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zamba_compat.errors import ConfigError
from zamba_compat.merging.sums import Sum, Weighted

from .base import About, Look, Method, Parameter, Share


@dataclass(frozen=True)
class Linear(Method):
    """See the module. The base takes part like the other models."""

    title: str = "Linear"
    url: str = "https://arxiv.org/abs/2203.05482"
    takes: Mapping[str, Parameter] = field(
        default_factory=lambda: {"weight": Parameter(None, each=True), "normalize": Parameter(True)}
    )
    main: str = "weight"
    base: str = ""

    def share(self, look: Look, models: Sequence[str], base: str, own_base: str | None, where: str) -> Share | None:
        if len(models) == 1:
            return self.kept(models[0])
        return super().share(look, models, base, own_base, where)

    def kept(self, base: str) -> Share:
        return Share({base: 1.0}, {"normalize": True})

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        total = sum(share.weights.values()) if share.values["normalize"] else 1.0
        if total == 0 or not any(share.weights.values()):
            raise ConfigError("The weights add up to 0.", where=about.where, remedy="Give weights with another sum.")
        return weighted({model: weight / total for model, weight in share.weights.items()})


def weighted(coefficients: Mapping[str, float]) -> tuple[tuple[str, ...], Sum | None]:
    """A sum without the models that add nothing to it."""
    used = {model: coefficient for model, coefficient in coefficients.items() if coefficient}
    if list(used.values()) == [1.0]:
        return tuple(used), None
    return tuple(used), Weighted(tuple(used.values()))


METHOD = Linear()
