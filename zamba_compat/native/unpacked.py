"""Weights in the layout of bitsandbytes' kernel for CPUs, written out in bfloat16: the loop of unpacked.c."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t
_ROWS, _COLUMNS = 32, 16  # of unpacked.c


class _Packed(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("data", "code", "scale")),
        *((name, _size) for name in ("rows", "columns", "block")),
    )


class Loop:
    """The function of unpacked.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._unpacked = functions.zamba_compat_unpacked
        self._unpacked.argtypes = [ctypes.POINTER(Team), ctypes.POINTER(_Packed), _pointer]
        self._unpacked.restype = None

    def write(self, data: Tensor, code: Tensor, scale: Tensor, out: Tensor) -> None:
        """The code's numbers times their scales into `out` [rows, columns], rounded once; all of what `fits`.

        data: (rows rounded up to 32, columns / 2), packed. code: [16]. scale: [rows, columns / blocksize].
        """
        (rows, columns), blocks = out.shape, scale.shape[1]
        packed = _Packed(data.data_ptr(), code.data_ptr(), scale.data_ptr(), rows, columns, columns // blocks)
        self._unpacked(team(), packed, out.data_ptr())


def fits(data: Tensor, code: Tensor, scale: Tensor, out: Tensor) -> bool:
    """Whether `Loop.write` takes these: plain tensors on a CPU, contiguous, of shapes that go together."""
    import torch

    (rows, columns), (scales, blocks) = out.shape, scale.shape
    return (
        rows == scales > 0
        and blocks > 0
        and columns % (blocks * _COLUMNS) == 0
        and data.shape == (rows + -rows % _ROWS, columns // 2)
        and code.shape == (16,)
        and data.dtype == torch.uint8
        and code.dtype == scale.dtype == torch.float32
        and out.dtype == torch.bfloat16
        and all(type(t) is torch.Tensor and t.is_cpu and t.is_contiguous() for t in (data, code, scale, out))
    )


def loop() -> Loop | None:
    """The loop; None where it cannot be had, or is switched off."""
    return available("unpacked", Loop)
