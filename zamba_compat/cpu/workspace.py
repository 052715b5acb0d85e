"""Memory that is used again: a fresh tensor of some megabytes is paged in while it is filled, which takes longer."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .function_mode import PLAIN


class Buffers(threading.local):
    """Memory that is used again, by name, in one thread."""

    def __init__(self) -> None:
        self._held: dict[tuple[Any, ...], Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous tensor of undefined content, valid until the name is taken again."""
        count = math.prod(shape)
        # An inference tensor cannot be written outside of inference mode.
        key = name, like.device, dtype or like.dtype, torch.is_inference_mode_enabled()
        held = self._held.get(key) if type(like) in PLAIN else None
        if held is None or held.numel() < count:
            held = torch.empty(count, dtype=dtype or like.dtype, device=like.device)
            if type(held) is Tensor:  # one of FakeTensorMode has no memory, and the next user would compute with it
                self._held[key] = held
        return held[:count].view(shape)


buffers = Buffers()
