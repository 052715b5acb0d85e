"""Task arithmetic: base + lambda * sum of w_i (x_i - base), the sum divided by that of w_i if normalize is true.

Source: Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089; mergekit's
merge_methods/generalized_task_arithmetic.py, 0.1.5, which adds in the tensors' own dtype where this adds in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zamba_compat.errors import ConfigError
from zamba_compat.merging.sums import Sum

from .base import Look, Share, number, numbers_only
from .linear import weighted

if TYPE_CHECKING:
    from zamba_compat.merging.settings import Setting

_NO_SUM = 1e-8  # mergekit's: such a sum of weights divides nothing


@dataclass(frozen=True)
class TaskArithmetic:
    """See the module."""

    title: str = "Task Arithmetic"
    url: str = "https://arxiv.org/abs/2212.04089"
    parameters: frozenset[str] = frozenset({"weight", "normalize", "lambda"})

    def check(self, name: str, setting: Setting, where: str) -> None:
        numbers_only(name, setting, where)

    def share(self, look: Look, models: Sequence[str], base: str, own_base: str, where: str) -> Share | None:
        if own_base != base or base not in models:
            raise ConfigError(
                f"A slice has the models {', '.join(models)}, and their differences are from the base.",
                where=where,
                remedy=f"Add {base} to the slice, with the layers that it has there.",
            )
        found = {model: look("weight", model) for model in models if model != base}
        weights = {model: number(weight) for model, weight in found.items() if weight is not None}
        if found and not weights:
            return None
        scale = look("lambda", None)
        return Share(weights, bool(look("normalize", None)), 1.0 if scale is None else number(scale))

    def kept(self, base: str) -> Share:
        return Share()

    def sum(self, share: Share, base: str, where: str) -> tuple[tuple[str, ...], Sum | None]:
        total = sum(share.weights.values())
        divisor = total if share.normalize and abs(total) >= _NO_SUM else 1.0
        others = {model: share.scale * weight / divisor for model, weight in share.weights.items()}
        return weighted({base: 1.0 - sum(others.values()), **others})
