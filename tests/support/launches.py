"""How many operations a mixer starts: what an accelerator would launch as a kernel each."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts the operations within it that compute; views of memory start nothing.

    double: whether any of them made float64.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.double = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, tuple | list) else (out,)
        if not any(ret.alias_info and not ret.alias_info.is_write for ret in func._schema.returns):
            # torch.empty and its like take memory and launch nothing.
            self.count += not func.__name__.startswith(("empty", "new_empty", "lift_fresh"))
        self.double |= any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in results)
        return out


def count(run: Any) -> tuple[int, bool]:
    """Operations that `run` starts, and whether any is in float64."""
    with Launches() as launches, torch.no_grad():
        run()
    return launches.count, launches.double
