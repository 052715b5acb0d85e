"""Merge models that have convolutions by DELLA.

Symptom:  "Expected p_in >= 0 && p_in <= 1" for every Mamba model, and for any tensor with a second dimension of one.
Cause:    della_magprune ranks along the second dimension, which is 1 in a depthwise convolution's (channels, 1, width),
          and divides the ranks by the largest minus the smallest: 0 / 0.
Upstream: none known.
Remove:   when such a tensor is ranked, along other dimensions or not at all.

What has more than two dimensions is ranked along all behind the first; the only element of a row stays with the
probability `density`, the mean of those of any row.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def along_all(original: Any) -> Any:
    def della_magprune(tensor: Any, density: float, epsilon: float, rescale_norm: Any = None) -> Any:
        rows = tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 2 else tensor
        if rows.numel() and rows.shape[-1] == 1 and 0 < density < 1:
            from mergekit.sparsify import bernoulli

            return bernoulli(tensor, density, rescale_norm)
        return original(rows, density, epsilon, rescale_norm).reshape(tensor.shape)

    return della_magprune


ADAPTER = Adapter(
    name="mergekit-della-rows",
    library="mergekit",
    since="0.1.5",
    group="merging",
    target="mergekit.sparsify:della_magprune",
    replace=along_all,
    signature=("tensor", "density", "epsilon", "rescale_norm"),
    upstream="none known",
)
