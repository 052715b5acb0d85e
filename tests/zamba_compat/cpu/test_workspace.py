"""Memory that is used again."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from zamba_compat.cpu.workspace import Buffers


def test_buffers_are_separate_in_inference_mode() -> None:
    buffers, like = Buffers(), torch.zeros(1)
    with torch.inference_mode():
        buffers.take("a", like, 4).fill_(1)
    buffers.take("a", like, 4).fill_(2)
    with torch.inference_mode():
        assert buffers.take("a", like, 2).tolist() == [1, 1]


def test_tensors_without_memory_are_not_kept() -> None:
    """Nor given memory that others use: what they leave behind would be computed with, and come out as nothing."""
    buffers = Buffers()
    with FakeTensorMode() as mode:
        like = torch.zeros(2)
        assert isinstance(buffers.take("name", like, 4), FakeTensor)
    real = buffers.take("name", torch.zeros(2), 4)
    assert type(real) is torch.Tensor
    with mode:
        assert isinstance(buffers.take("name", like, 4), FakeTensor)
        assert isinstance(buffers.take("other", torch.zeros(2), 4), FakeTensor)
    assert type(buffers.take("other", torch.zeros(2), 4)) is torch.Tensor
    assert buffers.take("name", torch.zeros(2), 4).data_ptr() == real.data_ptr()
