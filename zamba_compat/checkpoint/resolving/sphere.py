"""The mean of tensors on the sphere (Karcher mean)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zamba_compat.layout.copies import inner_products

if TYPE_CHECKING:
    from torch import Tensor

_ENOUGH = 1e-13  # radians
_MOST_STEPS = 200


def karcher_weights(copies: Sequence[Tensor]) -> list[float] | None:
    """Weights w with sum_i w[i] * copies[i] = the Riemannian mean of the flattened tensors' directions, times a norm.

    The direction is the point of the unit sphere with the least sum of squared angles to all copies, found by
    averaging in the tangent space until that average vanishes (Karcher, Comm. Pure Appl. Math. 30, 1977; Pennec,
    J. Math. Imaging Vision 25, 2006). For two copies it is SLERP at 1/2. The norm is the arithmetic mean of the
    norms: what interpolating norms linearly beside SLERP gives, and not shorter as the norm of the plain mean is.

    All iterates lie in the span of the copies, so they are kept as coefficients and the tensors are read once.

    Returns:
        one weight per copy; None where there is no such mean (a zero tensor, or copies not within one half space).
    """
    import torch

    products = inner_products(copies)
    norms = products.diagonal().sqrt()
    if not bool((norms > 0).all()) or not bool(products.isfinite().all()):
        return None
    gram = products / torch.outer(norms, norms)
    point = torch.full_like(norms, 1 / len(copies))
    length = (point @ gram @ point).clamp(min=0).sqrt()
    if length < 1e-6:
        return None
    point = point / length
    for _ in range(_MOST_STEPS):
        cosines = (gram @ point).clamp(-1, 1)
        if bool((cosines <= 0).any()):
            return None
        sines = (1 - cosines.square()).sqrt()
        # angle / sine, which tends to 1 for copies at the point itself
        stretch = torch.where(sines > 1e-8, torch.atan2(sines, cosines) / sines.clamp(min=1e-300), 1.0)
        step = (stretch - (stretch * cosines).sum() * point) / len(copies)
        angle = (step @ gram @ step).clamp(min=0).sqrt()
        if angle < _ENOUGH:
            break
        point = angle.cos() * point + angle.sin() * step / angle
        point = point / (point @ gram @ point).sqrt()
    weights: list[float] = (norms.mean() * point / norms).tolist()
    return weights
