"""Loops in C: what PyTorch's operations need several passes through memory for, in one.

setup.py compiles them where a C compiler is at hand. Without them, on a processor that they were not written for, and
with ZAMBA_COMPAT_NATIVE=0, there is None here and PyTorch computes the same: who uses these has both ways.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zamba_compat.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "_kernels.so"  # the same name on every system, as setup.py writes it
_VERSION = 14  # of the functions in C: a library that was built of an older one is left alone
_KINDS = {0: "none", 1: "avx2", 2: "avx512", 3: "neon"}


class Kernels:
    """The functions of kernels.c. Attributes: kind, the instructions they take."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.kind = _KINDS.get(library.zamba_compat_kind(), "none")
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._add, self._multiply = library.zamba_compat_add, library.zamba_compat_multiply
        self._slerp_rows = library.zamba_compat_slerp_rows
        self._add.argtypes = [pointer, pointer, pointer, ctypes.c_float, ctypes.c_float, size]
        self._multiply.argtypes = [pointer, pointer, size, pointer]
        self._slerp_rows.argtypes = [pointer, pointer, pointer, size, size, ctypes.c_double, pointer]
        for function in (self._add, self._multiply, self._slerp_rows):
            function.restype = None

    @staticmethod
    def fit(*tensors: Tensor) -> bool:
        """Whether these are tensors that the functions here take."""
        import torch

        return all(
            tensor.dtype == torch.bfloat16
            and tensor.device.type == "cpu"
            and tensor.is_contiguous()
            and tensor.data_ptr() % 2 == 0  # a file may begin its tensors anywhere
            for tensor in tensors
        )

    def add(self, out: Tensor, a: Tensor, b: Tensor, first: float, second: float) -> None:
        """first * a + second * b into `out`, all of one size; in float32, rounded once more to bfloat16."""
        self._add(out.data_ptr(), a.data_ptr(), b.data_ptr(), first, second, out.numel())

    def multiply(self, a: Tensor, b: Tensor) -> tuple[float, float, float]:
        """Dot products a a, a b and b b of tensors of one size: 128 products each in float32, the rest in float64."""
        sums = (ctypes.c_double * 3)()
        self._multiply(a.data_ptr(), b.data_ptr(), a.numel(), sums)
        return sums[0], sums[1], sums[2]

    def slerp_rows(self, out: Tensor, a: Tensor, b: Tensor, t: float) -> tuple[int, int]:
        """As `merging.blocks.slerped_rows`."""
        told = (ctypes.c_int64 * 2)()
        self._slerp_rows(out.data_ptr(), a.data_ptr(), b.data_ptr(), a.shape[0], a.shape[1], t, told)
        return told[0], told[1]


def kernels() -> Kernels | None:
    """The loops; None where they cannot be had, or are switched off."""
    return _loaded() if setting("native") else None


@cache
def _loaded() -> Kernels | None:
    found = library()
    return Kernels(found) if found is not None and found.zamba_compat_kind() else None


@cache
def library() -> ctypes.CDLL | None:
    """What setup.py has compiled; None if that is not there, or another version of it."""
    try:
        found = ctypes.CDLL(str(Path(__file__).with_name(LIBRARY)))
        return found if found.zamba_compat_version() == _VERSION else None
    except (OSError, AttributeError):  # not built, or for another system; or no library of ours
        return None
