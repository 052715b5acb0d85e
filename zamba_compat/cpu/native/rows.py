"""A bfloat16 matrix times a vector: the loop of rows.c."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class Matrix(ctypes.Structure):
    """As rows.h has it."""

    _fields_ = (("data", _pointer), ("stride", _size), ("rows", _size), ("columns", _size))


def matrix(weight: Tensor) -> Matrix:
    """Of a weight that `is_matrix`; it has to outlive this."""
    return Matrix(weight.data_ptr(), weight.stride(0), *weight.shape)


def is_matrix(weight: Tensor) -> bool:
    """Whether this is a matrix in bfloat16 on a CPU, or a part of some of its columns."""
    import torch

    return (
        weight.dim() == 2
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.numel() > 0
        and weight.stride(1) == 1
        and weight.data_ptr() % 2 == 0  # a file may begin its tensors anywhere
    )


class Loop:
    """The function of rows.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._rows = functions.zamba_compat_rows
        self._rows.argtypes = [ctypes.POINTER(kind) for kind in (Team, Matrix)] + [_pointer] * 3
        self._rows.restype = None

    def product(self, weight: Tensor, x: Tensor, room: Tensor, out: Tensor) -> None:
        """weight @ x into `out`, summed in float32.

        weight: [rows, columns] that `is_matrix`. x: [columns], out: [rows], of its dtype. room: [columns], float32.
        """
        self._rows(team(), matrix(weight), x.data_ptr(), room.data_ptr(), out.data_ptr())


def loop() -> Loop | None:
    """The loop; None where it cannot be had, or is switched off."""
    return available("rows", Loop)
