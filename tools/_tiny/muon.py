"""An optimizer that orthogonalises the momentum of every matrix before the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Odd quintic a x + b x^3 + c x^5 that pushes singular values in (0, 1] towards 1 within five applications.
QUINTIC = (3.4445, -4.7750, 2.0315)
APPLICATIONS = 5


def orthogonalise(m: Tensor) -> Tensor:
    """Matrices (count, rows, columns) with the singular vectors of m and singular values of about 1."""
    wide = m if m.shape[-2] <= m.shape[-1] else m.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(APPLICATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is m else x.mT


class Muon(torch.optim.Optimizer):
    """Muon after Jordan et al. (2024), float32, for two-dimensional parameters.

    The step is scaled by 0.2 sqrt(max(rows, columns)), which gives it AdamW's typical size (Liu et al., 2025).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for shape, params in alike.items():
                update = orthogonalise(torch.stack([self._nesterov(p, group["momentum"]) for p in params]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-size)

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        average = self.state[p].setdefault("average", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)
