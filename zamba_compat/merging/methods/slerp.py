"""Spherical linear interpolation from the base (t = 0) to the other model (t = 1), in two forms.

`slerp` takes a tensor as one vector, as mergekit does (mergekit/merge_methods/slerp.py, 0.1.5). `slerp_rowwise` takes
every row of a matrix as one, as the script of the study of merged Zamba2 models does (Zamba2-SLERP-Merge). Both weigh
the tensors themselves, not their directions, so lengths are interpolated too. Source: Shoemaker, SIGGRAPH 1985.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zamba_compat.errors import ConfigError
from zamba_compat.merging.sums import RowSlerp, Sum, WholeSlerp

from .base import Look, Share, number, numbers_only

if TYPE_CHECKING:
    from zamba_compat.merging.settings import Setting


@dataclass(frozen=True)
class Slerp:
    """See the module. Attribute: rows: take every row of a matrix for itself."""

    rows: bool
    title: str
    url: str = "https://en.wikipedia.org/wiki/Slerp"
    parameters: frozenset[str] = frozenset({"t"})

    def check(self, name: str, setting: Setting, where: str) -> None:
        numbers_only(name, setting, where)
        for value in setting.scalars():
            if not 0 <= number(value) <= 1:
                raise ConfigError(
                    f"t is {value}, outside of [0, 1].", where=where, remedy="0 is the base, 1 the other model."
                )

    def share(self, look: Look, models: Sequence[str], base: str, own_base: str, where: str) -> Share | None:
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

    def sum(self, share: Share, base: str, where: str) -> tuple[tuple[str, ...], Sum | None]:
        weights = {model: t for model, t in share.weights.items() if t}
        if len(weights) > 1:
            raise ConfigError(
                f"A shared tensor would go from the base to {' and '.join(weights)} at once.",
                where=where,
                remedy="Merge the layers that share a block with one model, or use shared: separate.",
            )
        for other, t in weights.items():
            if t == 1:
                return (other,), None
            return (base, other), RowSlerp(t) if self.rows else WholeSlerp(t)
        return (base,), None
