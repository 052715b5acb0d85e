"""Products with matrices that bitsandbytes quantized to 4 bits, without dequantizing them: the loops of quantized.c."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", _pointer), ("code", _pointer), ("scale", _pointer), ("nested", _pointer), ("second_code", _pointer),
        ("second", _pointer), ("second_block", _size), ("offset", ctypes.c_float), ("rows", _size), ("columns", _size),
        ("block", _size),
    )  # fmt: skip


class Quantized:
    """A weight of bitsandbytes for the loops. Raises ValueError where it is one that they do not take.

    data: of any shape, the nibbles of [rows, columns] in order. state: its quant state.
    """

    CHUNK = 64  # of quantized.c

    def __init__(self, data: Tensor, state: Any) -> None:
        import torch

        self.rows, self.columns = state.shape
        block, second = state.blocksize, state.state2 if state.nested else None
        scales = state.absmax if second is None else second.absmax
        floats = [scales, state.code, *([] if second is None else [second.code])]
        count = self.rows * self.columns
        # A checkpoint can say anything; the loops read what it says is there.
        fits = (
            block > 0
            and block % self.CHUNK == self.columns % block == 0
            and data.numel() * data.element_size() * 2 == count
            and state.absmax.numel() * block == count
            and state.code.numel() == 16
            and (second is None or _goes_with(second, state.absmax))
            and all(tensor.dtype == torch.float32 for tensor in floats)
            and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in (data, state.absmax, *floats))
        )
        if not fits:
            raise ValueError("not a matrix for the loops in C")
        self._kept = data, state.absmax, floats  # what the pointers below point to
        self._matrix = _Matrix(data=data.data_ptr(), code=state.code.data_ptr(), rows=self.rows, columns=self.columns)
        self._matrix.block = block
        if second is None:
            self._matrix.scale = scales.data_ptr()
        else:
            self._matrix.nested, self._matrix.second = state.absmax.data_ptr(), scales.data_ptr()
            self._matrix.second_code, self._matrix.second_block = second.code.data_ptr(), second.blocksize
            self._matrix.offset = float(state.offset)

    def structure(self) -> ctypes.Structure:
        """What the functions in C are given, without what keeps its tensors."""
        return _Matrix.from_buffer_copy(self._matrix)


def _goes_with(second: Any, nested: Tensor) -> bool:
    """Whether a second quant state has what 8-bit scales refer to."""
    import torch

    count = second.absmax.numel() * second.blocksize
    return nested.dtype == torch.uint8 and second.code.numel() == 256 and count >= nested.numel() > 0


class Loops:
    """The functions of quantized.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._product, self._dequantize = functions.zamba_compat_quantized_product, functions.zamba_compat_dequantize
        threads, matrix = ctypes.POINTER(Team), ctypes.POINTER(_Matrix)
        self._product.argtypes = [threads, matrix, _pointer, _pointer, _pointer]
        self._tokens, self._write = functions.zamba_compat_quantized_tokens, functions.zamba_compat_written
        self._tokens.argtypes = [threads, matrix, _size, _pointer, _pointer, _pointer]
        self._dequantize.argtypes = self._write.argtypes = [threads, matrix, _size, _size, _pointer]
        self._tokens.restype = self._write.restype = None
        self._product.restype = self._dequantize.restype = None

    def product(self, matrix: Quantized, x: Tensor, out: Tensor) -> None:
        """matrix @ x into `out`. x: [columns], out: [rows], both contiguous and float32, as the sums are."""
        room = x.new_empty(matrix.columns)
        self._product(team(), matrix._matrix, x.data_ptr(), room.data_ptr(), out.data_ptr())

    def tokens(self, matrix: Quantized, x: Tensor, room: Tensor, out: Tensor) -> None:
        """The same of bfloat16, rounded once. x: [tokens, columns], out: [tokens, rows].

        room: [tokens, columns], float32.
        """
        self._tokens(team(), matrix._matrix, len(x), x.data_ptr(), room.data_ptr(), out.data_ptr())

    def write(self, matrix: Quantized, start: int, out: Tensor) -> None:
        """As `dequantize`, rounded once to bfloat16. Where `is_wide`."""
        self._write(team(), matrix._matrix, start, len(out), out.data_ptr())

    def dequantize(self, matrix: Quantized, start: int, out: Tensor) -> None:
        """The rows from `start` on into `out`, [some rows, columns], contiguous and float32."""
        self._dequantize(team(), matrix._matrix, start, len(out), out.data_ptr())


def takes_avx512() -> bool:
    """Whether the loops, where there are any, take AVX-512."""
    found = team()
    return found is not None and bool(found.wide)


def is_wide() -> bool:
    """Whether there are loops, and they take AVX-512."""
    return loops() is not None and takes_avx512()


def loops() -> Loops | None:
    """The loops; None where they cannot be had, or are switched off."""
    return available("quantized", Loops)
