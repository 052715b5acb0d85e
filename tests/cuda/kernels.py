"""Which kernels a model on a GPU has, and a context without any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def found(model: Any) -> bool:
    """Whether the mixers of a model run fused kernels."""
    from zamba_compat.patches import ADAPTERS

    from zamba_compat.mamba2.fused import Kernels

    mixer = model.model.layers[0].mamba
    adapter = next(a for a in ADAPTERS if a.name == "zamba2-fused-path")
    make = adapter.patches[0].replace
    cells = dict(zip(make.__code__.co_freevars, make.__closure__, strict=True))
    return isinstance(cells["find"].cell_contents(mixer), Kernels)


@contextmanager
def none() -> Iterator[None]:
    """Within it, mixers on a GPU compute with PyTorch's operations."""
    from zamba_compat.mamba2 import fused

    own = fused.mixer_forward

    def plain(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **{**kwargs, "kernels": None})

    fused.mixer_forward = plain
    try:
        yield
    finally:
        fused.mixer_forward = own


def placed(bytes_before: int) -> tuple[int, int]:
    """Bytes held on the device beyond some, and the peak beyond them."""
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - bytes_before, torch.cuda.max_memory_allocated() - bytes_before
