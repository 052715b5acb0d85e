"""Memory that is used again."""

from __future__ import annotations

import torch

from zamba_compat.buffers import Buffers


def test_buffers_are_separate_in_inference_mode() -> None:
    buffers, like = Buffers(), torch.zeros(1)
    with torch.inference_mode():
        buffers.take("a", like, 4).fill_(1)
    buffers.take("a", like, 4).fill_(2)
    with torch.inference_mode():
        assert buffers.take("a", like, 2).tolist() == [1, 1]
