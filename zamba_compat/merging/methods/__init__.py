"""The merge methods, by their names in mergekit's YAML; `slerp_rowwise` is ours."""

from __future__ import annotations

from . import (
    arcee_fusion,
    breadcrumbs,
    dare,
    della,
    karcher,
    linear,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    ram,
    sce,
    slerp,
    task_arithmetic,
    ties,
)
from .base import About, Method, Share

__all__ = ["METHODS", "PARAMETERS", "About", "Method", "Share"]

METHODS: dict[str, Method] = {
    "slerp": slerp.METHOD,
    "slerp_rowwise": slerp.BY_ROWS,
    "linear": linear.METHOD,
    "task_arithmetic": task_arithmetic.METHOD,
    "ties": ties.METHOD,
    "dare_ties": dare.WITH_TIES,
    "dare_linear": dare.METHOD,
    "della": della.METHOD,
    "della_linear": della.LINEAR,
    "breadcrumbs": breadcrumbs.METHOD,
    "breadcrumbs_ties": breadcrumbs.WITH_TIES,
    "nuslerp": nuslerp.METHOD,
    "multislerp": multislerp.METHOD,
    "karcher": karcher.METHOD,
    "model_stock": model_stock.METHOD,
    "sce": sce.METHOD,
    "ram": ram.METHOD,
    "ramplus_tl": ram.PLUS,
    "nearswap": nearswap.METHOD,
    "arcee_fusion": arcee_fusion.METHOD,
    "passthrough": passthrough.METHOD,
}
# What is none of these is a slip of the pen.
PARAMETERS = frozenset(name for method in METHODS.values() for name in method.parameters)
