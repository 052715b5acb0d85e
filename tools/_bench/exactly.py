"""What PyTorch rounds or leaves open in mergekit's merges, done as here, to tell that from a difference.

A norm or a dot product of 65 million elements in float32 is up to 0.6% too small, and of equal magnitudes a sort that
is not stable takes any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def arm() -> None:
    """Add in float64, and let the later of equal elements be the larger one, in this process from now on."""
    norm, vector_norm, dot, argsort, sort = torch.norm, torch.linalg.vector_norm, torch.dot, torch.argsort, torch.sort

    def ordered(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
        found = argsort(x, dim=dim, stable=True)
        return found.flip(dim) if descending else found

    def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
        found = ordered(x, dim, largest).narrow(dim, 0, k)
        return x.gather(dim, found), found

    changed: dict[tuple[Any, str], Any] = {
        (torch, "norm"): lambda x, *args, **words: norm(x.double(), *args, **words).to(x.dtype),
        (torch.linalg, "vector_norm"): lambda x, *args, **words: vector_norm(x.double(), *args, **words).to(x.dtype),
        (torch, "dot"): lambda x, y: dot(x.double(), y.double()).to(x.dtype),
        (torch, "argsort"): ordered,
        (torch, "sort"): lambda x, dim=-1, descending=False: sort(x, dim=dim, descending=descending, stable=True),
        (torch, "topk"): topk,
    }
    for (owner, name), instead in changed.items():
        setattr(owner, name, instead)
