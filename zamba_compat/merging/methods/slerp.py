"""Spherical linear interpolation from the base (t = 0) to the other model (t = 1), in two forms.

`slerp` takes a tensor as one vector, as mergekit does (mergekit/merge_methods/slerp.py, 0.1.5). `slerp_rowwise` takes
every row of a matrix as one, as the script of the study of merged Zamba2 models does (Zamba2-SLERP-Merge). Both weigh
the tensors themselves, not their directions, so lengths are interpolated too. Source: Shoemaker, SIGGRAPH 1985.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zamba_compat.errors import ConfigError
from zamba_compat.merging.sums import RowSlerp, Sum, WholeSlerp

from .base import About, Look, Method, Parameter, Share, number


@dataclass(frozen=True)
class Slerp(Method):
    """See the module. Attribute: rows: take every row of a matrix for itself."""

    title: str = "SLERP"
    url: str = "https://en.wikipedia.org/wiki/Slerp"
    takes: Mapping[str, Parameter] = field(default_factory=lambda: {"t": Parameter(None, least=0, most=1)})
    main: str = "t"
    rows: bool = False

    def share(self, look: Look, models: Sequence[str], base: str, own_base: str | None, where: str) -> Share | None:
        others = [model for model in models if model != base]
        if len(models) == 1:
            return Share(dict.fromkeys(others, 1.0))
        if len(models) != 2 or len(others) != 1 or own_base not in models:
            raise ConfigError(
                f"A slice has the models {', '.join(models)}; slerp goes from the base to one other.",
                where=where,
                remedy="Give each slice the base and one other model, or one model alone.",
            )
        t = look("t", None)
        if t is None:
            return None if own_base == base else Share({others[0]: 1.0})
        return Share({others[0]: number(t) if own_base == base else 1 - number(t)})

    def kept(self, base: str) -> Share:
        return Share()

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        weights = {model: t for model, t in share.weights.items() if t}
        if len(weights) > 1:
            raise ConfigError(
                f"A shared tensor would go from the base to {' and '.join(weights)} at once.",
                where=about.where,
                remedy="Merge the layers that share a block with one model, or use shared: separate.",
            )
        for other, t in weights.items():
            if t == 1:
                return (other,), None
            return (about.base, other), RowSlerp(t) if self.rows else WholeSlerp(t)
        return (about.base,), None


METHOD = Slerp()
BY_ROWS = Slerp("SLERP, row by row", rows=True)
