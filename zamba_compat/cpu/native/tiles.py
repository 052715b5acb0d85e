"""Products of many rows through the tile instructions of AMX: the loops of tiles.c."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from .rows import Matrix, matrix
from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class Loops:
    """The functions of tiles.c."""

    ALIGNED = 64  # bytes, of the room

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._room, self._product = functions.zamba_compat_tiles_room, functions.zamba_compat_tiles_product
        threads = ctypes.POINTER(Team)
        self._room.argtypes, self._room.restype = [threads, _size, _size], _size
        self._product.argtypes = [
            *(threads, ctypes.POINTER(Matrix), _pointer, _size, _size),
            *(_pointer, _size, ctypes.c_int, _pointer),
        ]
        self._product.restype = None

    def room(self, rows: int, columns: int) -> int:
        """How many bytes of room a product of so many rows with a weight of so many columns takes."""
        return int(self._room(team(), rows, columns)) + self.ALIGNED

    def product(self, x: Tensor, weight: Tensor, room: Tensor, out: Tensor, *, add: bool) -> None:
        """x @ weight.T into `out`, or added to what is there, summed in float32 and rounded once.

        x: [rows, columns], out: [rows, features], weight: [features, columns] for which `rows.is_matrix` is true, all
        of them bfloat16, the columns of each in order. room: as many bytes as `room` says.
        """
        start = -(-room.data_ptr() // self.ALIGNED) * self.ALIGNED
        self._product(
            *(team(), matrix(weight), x.data_ptr(), x.stride(0), len(x)),
            *(out.data_ptr(), out.stride(0), add, start),
        )


def loops() -> Loops | None:
    """The loops; None where they cannot be had, or are switched off."""
    return available("tiles", Loops)
