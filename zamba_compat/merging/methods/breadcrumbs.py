"""Model Breadcrumbs: of each difference from the base neither the smallest nor the very largest elements stay.

Of n elements the int(gamma n) largest go, and so many of the smallest that int(density n) stay; where that is not
enough, fewer of the largest go. See `task_arithmetic` for the sum; breadcrumbs_ties wants the signs to agree.
Source: Davari and Belilovsky, "Model Breadcrumbs", arXiv 2312.06795; mergekit/sparsify.py, 0.1.5, `magnitude_outliers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .base import Parameter
from .task_arithmetic import Sparsifier, TaskArithmetic
from .ties import Between


@dataclass(frozen=True)
class Breadcrumbs(TaskArithmetic):
    """See the module."""

    def sparsifier(self, values: Mapping[str, float], key: str, where: str) -> Sparsifier:
        return Between(values["density"], top=values["gamma"])


_URL, _OWN = "https://arxiv.org/abs/2312.06795", {"gamma": Parameter(0.01, each=True, least=0, most=1)}
METHOD = Breadcrumbs("Model Breadcrumbs", _URL, own=_OWN)
WITH_TIES = Breadcrumbs("Model Breadcrumbs with TIES", _URL, own=_OWN, agree=True)
