"""Passthrough: each slice's only model as it is, or `scale` times it.

So layers of several models are put on each other, each at its own place: layers that move would meet other shared
blocks. Source: mergekit/merge_methods/passthrough.py, 0.1.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zamba_compat.errors import ConfigError
from zamba_compat.merging.sums import Sum, Weighted

from .base import About, Method, Parameter, Share


@dataclass(frozen=True)
class Passthrough(Method):
    """See the module."""

    title: str = "Passthrough"
    url: str = "https://github.com/arcee-ai/mergekit"
    takes: Mapping[str, Parameter] = field(default_factory=lambda: {"scale": Parameter(1.0, each=True)})
    main: str = "scale"
    base: str = ""
    count: tuple[int, int | None] = (1, 1)

    def sum(self, share: Share, about: About) -> tuple[tuple[str, ...], Sum | None]:
        if len(share.weights) > 1:
            raise ConfigError(
                f"The layers that share it are to be those of {' and '.join(share.weights)}.",
                where=about.where,
                remedy="Take the layers that share a block of one model, or use shared: separate.",
            )
        ((model, scale),) = share.weights.items()
        return (model,), None if scale == 1 else Weighted((scale,))


METHOD = Passthrough()
