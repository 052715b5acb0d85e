"""mergekit with what zamba_compat draws and how it orders equal numbers, so that the two can be compared exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zamba_compat.merging.streamed import uniform
from zamba_compat.merging.workers import STEP


def drawn(key: str, shape: tuple[int, ...], width: int) -> Tensor:
    """The numbers that a merge draws for a tensor whose pieces are whole rows of `width`."""
    size = max(1, STEP // width) * width
    count = math.prod(shape)
    parts = [uniform(key, number, min(size, count - at)) for number, at in enumerate(range(0, count, size))]
    return torch.cat(parts).reshape(shape)


def same_choices(patch: pytest.MonkeyPatch, numbers: dict[str, int], seed: int = 0) -> None:
    """Make mergekit draw these numbers, and take the later of equal ones.

    Args:
        numbers: model's path -> its place among the parents.
    """
    from mergekit.merge_methods import generalized_task_arithmetic as family

    argsort, sort, sparsify = torch.argsort, torch.sort, family.sparsify
    merge_group: Callable[..., Tensor] = family.GeneralizedTaskArithmeticMerge.merge_group
    now: dict[str, Any] = {}

    def remembering(self: Any, group: Any, **parameters: Any) -> Tensor:
        now["name"], now["entries"] = group.metadata.name, iter(group.non_base)
        return merge_group(self, group, **parameters)

    def sparsified(delta: Tensor, **words: Any) -> Tensor:
        now["number"] = numbers[next(now["entries"]).id.model.path]
        now["row"] = words["method"].value == "della_magprune"
        now["shape"] = tuple(delta.shape)
        return sparsify(delta, **words)

    def bernoulli(probabilities: Tensor) -> Tensor:
        shape = now["shape"]
        width = (math.prod(shape[1:]) if len(shape) > 1 else shape[0]) if now["row"] else 1
        found = drawn(f"{seed}/{now['name']}/{now['number']}", shape, width)
        return (found.reshape(probabilities.shape) < probabilities).to(probabilities.dtype)

    def ordered(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
        found = argsort(x, dim=dim, stable=True)
        return found.flip(dim) if descending else found

    patch.setattr(family.GeneralizedTaskArithmeticMerge, "merge_group", remembering)
    patch.setattr(family, "sparsify", sparsified)
    patch.setattr(torch, "bernoulli", bernoulli)
    patch.setattr(torch, "argsort", ordered)
    patch.setattr(
        torch, "sort", lambda x, dim=-1, descending=False: sort(x, dim=dim, descending=descending, stable=True)
    )
    patch.setattr(torch, "topk", lambda x, k, largest=True: (None, ordered(x, descending=largest)[:k]))
