"""bfloat16 matrices in 12 bits a weight, without loss: the loops of packed.c."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

from .rows import Matrix, is_matrix, matrix
from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 64  # of packed.c: columns are a multiple of it
_BYTES = 96  # of packed.c
# Weights that a product has to gather one by one: of random ones 1 in 3,000 is listed, and more than this no gain.
_MOST_LISTED = 0.01

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class _Packed(ctypes.Structure):
    _fields_ = tuple((name, _pointer) for name in ("data", "base", "offset", "column", "value"))


class Packed:
    """A copy of a matrix for `Loops.product`. Attributes: rows, columns; nbytes, what it takes."""

    def __init__(self, rows: int, columns: int, kept: dict[str, Tensor]) -> None:
        self.rows, self.columns = rows, columns
        self._sizes = Matrix(None, 0, rows, columns)
        self._kept = kept  # what the pointers below point to
        self._pointers = _Packed(**{name: tensor.data_ptr() for name, tensor in kept.items()})

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())


class Loops:
    """The functions of packed.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._count, self._fill = functions.zamba_compat_packed_count, functions.zamba_compat_packed_fill
        self._same, self._product = functions.zamba_compat_packed_same, functions.zamba_compat_packed_product
        given = [ctypes.POINTER(kind) for kind in (Team, Matrix, _Packed)]
        for function in (self._count, self._fill, self._same, self._product):
            function.argtypes, function.restype = given, None
        self._product.argtypes = [*given, _pointer, _pointer]
        self._token = functions.zamba_compat_packed_token
        matrices = [ctypes.POINTER(Matrix)] * 2
        self._token.argtypes = [*given, _pointer, _pointer, ctypes.c_float, *matrices, _pointer, _pointer]
        self._token.restype = None
        self._same.argtypes, self._same.restype = [*given, _size, _size], ctypes.c_int

    @staticmethod
    def fit(weight: Tensor) -> bool:
        """Whether this is a matrix that can be packed, or a part of some of its columns."""
        return is_matrix(weight) and weight.shape[1] % CHUNK == 0

    def pack(self, weight: Tensor) -> Packed | None:
        """A copy of weight, [rows, columns] that `fit`, or None where too many of its weights would be listed."""
        import torch

        rows, columns = weight.shape
        kept = {"base": torch.empty(rows, dtype=torch.uint8), "offset": torch.zeros(rows + 1, dtype=torch.int32)}
        of, threads = matrix(weight), team()
        self._count(threads, of, Packed(rows, columns, kept)._pointers)
        listed = int(kept["offset"].sum(dtype=torch.int64))
        if listed > weight.numel() * _MOST_LISTED:
            return None
        kept["offset"] = kept["offset"].cumsum(0, dtype=torch.int32)
        kept["data"] = _room(rows * columns // CHUNK * _BYTES)
        kept["column"], kept["value"] = torch.empty(listed, dtype=torch.int32), torch.empty(listed)
        packed = Packed(rows, columns, kept)
        self._fill(threads, of, packed._pointers)
        return packed

    def same(self, packed: Packed, weight: Tensor, row: int | None = None) -> bool:
        """Whether a matrix that `fit` has the weights, bit by bit, of the one that was packed; or one of its rows."""
        if weight.shape != (packed.rows, packed.columns):
            return False
        first, last = (0, packed.rows) if row is None else (row, row + 1)
        return bool(self._same(team(), matrix(weight), packed._pointers, first, last))

    def product(self, packed: Packed, x: Tensor, out: Tensor) -> None:
        """The matrix times x into `out`. x: [columns], out: [rows], both contiguous and float32, as the sums are."""
        self._product(team(), packed._sizes, packed._pointers, x.data_ptr(), out.data_ptr())

    def token(
        self,
        packed: Packed,
        x: Tensor,
        room: Tensor,
        out: Tensor,
        *,
        plus: Tensor | None = None,
        times: float = 0.0,
        adapter: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """The matrix times x, plus times `times`, and what an adapter makes of x, into `out`; summed in float32.

        x: [columns] or, with an adapter, more, of which the first go to the matrix. out: [rows]. Both bfloat16.
        plus: [rows], float32. All contiguous.
        adapter: matrices as `rows.is_matrix` asks, [rank, len(x)] and [rows, rank].
        room: [`token_room` of len(x) and the rank], float32.
        """
        added = None if plus is None else plus.data_ptr()
        pair = (None, None) if adapter is None else map(matrix, adapter)
        pointers = room.data_ptr(), out.data_ptr()
        self._token(team(), packed._sizes, packed._pointers, x.data_ptr(), added, times, *pair, *pointers)

    @staticmethod
    def token_room(columns: int, rank: int) -> int:
        """Numbers."""
        return columns + 2 * rank


def _room(size: int) -> Tensor:
    """Memory in large pages where the system has them: a twentieth to a tenth faster to read through."""
    import torch

    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def loops() -> Loops | None:
    """The loops; None where they cannot be had, or are switched off."""
    return available("packed", Loops)
