"""Attention of one token to those before it, in bfloat16: the loop of attention.c."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 16  # of attention.c: head_dim is a multiple of it

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class _Numbers(ctypes.Structure):
    _fields_ = (("data", _pointer), ("row", _size), ("head", _size), ("token", _size))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, _size) for name in ("rows", "heads", "group", "head_dim", "tokens")),
        *((name, _Numbers) for name in ("query", "key", "value")),
        ("mask", _pointer),
        ("scale", ctypes.c_float),
        ("room", _pointer),
        ("out", _pointer),
    )


class Loop:
    """The function of attention.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._attention = functions.zamba_compat_attention
        self._attention.argtypes, self._attention.restype = [ctypes.POINTER(Team), ctypes.POINTER(_Attention)], None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, room: Tensor, out: Tensor
    ) -> None:
        """softmax(scale * query key^T + mask) value into `out`, with sums in float32; of what `fit`.

        mask: [batch, tokens], contiguous, float32. room: batch * heads * (tokens + 2 * head_dim) of float32.
        out: [batch, heads, 1, head_dim], contiguous.
        """
        batch, heads, _, head_dim = query.shape
        job = _Attention(batch, heads, heads // key.shape[1], head_dim, key.shape[2])
        job.query, job.key, job.value = _numbers(query), _numbers(key), _numbers(value)
        job.mask, job.scale = None if mask is None else mask.data_ptr(), scale
        job.room, job.out = room.data_ptr(), out.data_ptr()
        self._attention(team(), job)


def fit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `Loop.attend` takes these.

    query: [batch, heads, 1, head_dim]. key, value: [batch, heads or a part of them, tokens, head_dim].
    """
    import torch

    return (
        query.dim() == 4
        and query.shape[2] == 1
        and key.shape == value.shape
        and key.dim() == 4
        and 0 not in (*query.shape, *key.shape)
        and key.shape[0] == query.shape[0]
        and query.shape[1] % key.shape[1] == 0
        and key.shape[3] == query.shape[3]
        and query.shape[3] % WIDTH == 0
        and all(
            tensor.dtype == torch.bfloat16
            and tensor.device.type == "cpu"
            and tensor.stride(3) == 1
            and tensor.data_ptr() % 2 == 0
            for tensor in (query, key, value)
        )
    )


def _numbers(tensor: Tensor) -> _Numbers:
    return _Numbers(tensor.data_ptr(), *tensor.stride()[:3])


def loop() -> Loop | None:
    """The loop; None where it cannot be had, or is switched off."""
    return available("attention", Loop)
