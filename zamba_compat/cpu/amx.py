"""bfloat16 products of several rows with the tile instructions of AMX, by a loop of our own.

oneDNN, which PyTorch hands them to, rearranges the weight at every call, and gives each thread its share beforehand, so
that the slowest one counts. Measured on two cores of a shared Xeon, taking turns, with the weights of 1.2B: 0.9 to 1.2
times as fast for 2 and 16 rows, 1.3 to 1.8 for 32 and 64, 0.9 to 2 for 128 and more. See cpu/native/tiles.c.
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import gemv
from .function_mode import PLAIN, Linears, unasked
from .native.rows import is_matrix
from .native.tiles import loops
from .workspace import buffers

FEWEST = 2  # rows; one is the memory's alone, see `gemv`
_COLUMNS = 32  # of a tile


def gains(dtype: torch.dtype, device: str, rows: int) -> bool:
    """Whether products of `rows` rows in `dtype` gain from `product`."""
    return (
        rows >= FEWEST
        and dtype == torch.bfloat16
        and device == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and gemv.has_tiles()
        and loops() is not None
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor | None:
    """x @ weight.T + bias, summed in float32 and rounded once; None where that is for PyTorch, or faster there.

    x: [rows, in_features]. weight: [out_features, in_features]. bias: [out_features]. out: [rows, out_features].
    """
    with unasked(x):
        place = x.new_empty(len(x), len(weight)) if out is None else out
        if not _takes(x, weight, place):
            return None
        if bias is not None:
            place.copy_(bias)
        _multiply(x, weight, place, add=bias is not None)
        return place


def add_product(to: Tensor, x: Tensor, weight: Tensor) -> bool:
    """to += x @ weight.T, rounded once; false, and nothing is changed, where that is for PyTorch, or faster there."""
    with unasked(x):
        if not _takes(x, weight, to):
            return False
        _multiply(x, weight, to, add=True)
        return True


def within() -> Linears:
    """Within it, F.linear goes through `product`."""
    return Linears(product, lambda rows: rows >= FEWEST)


def _takes(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    """Whether these gain, and are matrices that the loop takes, with columns that fill its tiles."""
    matrices = (x, weight, out)
    return (
        gains(x.dtype, x.device.type, len(x))
        and weight.shape[-1] % _COLUMNS == 0
        and all(type(each) in PLAIN and is_matrix(each) for each in matrices)
    )


def _multiply(x: Tensor, weight: Tensor, out: Tensor, *, add: bool) -> None:
    found = loops()
    assert found is not None
    room = buffers.take("tiles", x, found.room(*x.shape), dtype=torch.uint8)
    found.product(x, weight, room, out, add=add)
