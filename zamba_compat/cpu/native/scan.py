"""A sequence through a Mamba2 mixer, between its projections: the loop of scan.c."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t
MOST_TAPS, MOST_STATE = 8, 256  # of scan.c
LEAST_TOKENS = 16  # of a sequence, for chunks


class _Mixer(ctypes.Structure):
    _fields_ = (
        *((name, _size) for name in ("heads", "head_dim", "d_state", "groups", "taps", "norm_group")),
        *((name, _pointer) for name in ("kernel", "bias", "A", "D", "norm")),
        ("epsilon", ctypes.c_float),
    )


class _Sequence(ctypes.Structure):
    _fields_ = (
        *((name, _size) for name in ("tokens", "xbc_stride", "gate_stride", "dt_stride")),
        *((name, _pointer) for name in ("xbc", "gate", "earlier", "dt", "state", "room", "out")),
        *((name, ctypes.c_int64) for name in ("narrow", "goes_on")),
    )


class Weights(NamedTuple):
    """A mixer's, all of them float32 and contiguous.

    kernel: [taps, channels], the oldest input's first. bias: [channels] or None. A, D: [heads], A negative.
    norm: [heads * head_dim], of which `norm_group` numbers are normed together, with `epsilon`.
    """

    kernel: Tensor
    bias: Tensor | None
    A: Tensor
    D: Tensor
    norm: Tensor
    norm_group: int
    epsilon: float


class Loop:
    """The function of scan.c."""

    ALIGNED = 64  # bytes, of the room

    def __init__(self, functions: ctypes.CDLL, name: str = "scan") -> None:
        self._scan = getattr(functions, f"zamba_compat_{name}")
        self._room = getattr(functions, f"zamba_compat_{name}_room")
        self._scan.argtypes = [ctypes.POINTER(kind) for kind in (Team, _Mixer, _Sequence)]
        self._room.argtypes, self._room.restype = [ctypes.POINTER(_Mixer)], _size
        self._scan.restype = None

    def room(self, weights: Weights, groups: int, state: Tensor) -> int:
        """How many numbers of float32 it takes for such a state."""
        return int(self._room(_mixer(weights, groups, state))) + self.ALIGNED // 4

    def run(
        self,
        weights: Weights,
        xbc: Tensor,
        gate: Tensor,
        dt: Tensor,
        *,
        groups: int,
        earlier: Tensor | None,
        state: Tensor,
        goes_on: bool,
        room: Tensor,
        out: Tensor,
    ) -> None:
        """Convolve, scan, gate and norm a sequence; all of what `fits`.

        xbc: [seq, channels], gate: [seq, inner]. dt: [seq, heads], after softplus and limits.
        earlier: [channels, taps], the inputs before the first token, zeros where None.
        state: [heads, head_dim, d_state], moved on from what is in it if it `goes_on`, else from zeros.
        out: [seq, inner], what the norm makes of y. room: as many as `room` says.
        """
        start = -(-room.data_ptr() // self.ALIGNED) * self.ALIGNED
        places = *map(_at, (xbc, gate, earlier, dt, state)), start, out.data_ptr()
        strides = (tensor.stride(0) for tensor in (xbc, gate, dt))
        sequence = _Sequence(len(xbc), *strides, *places, xbc.element_size() == 2, goes_on)
        self._scan(team(), _mixer(weights, groups, state), sequence)


def _mixer(weights: Weights, groups: int, state: Tensor) -> _Mixer:
    mixer = _Mixer(*state.shape[-3:], groups, len(weights.kernel), weights.norm_group)
    for name in ("kernel", "bias", "A", "D", "norm"):
        setattr(mixer, name, _at(getattr(weights, name)))
    mixer.epsilon = weights.epsilon
    return mixer


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def fits(
    weights: Weights, xbc: Tensor, gate: Tensor, dt: Tensor, groups: int, earlier: Tensor | None, state: Tensor
) -> bool:
    """Whether `Loop.run` takes these, as it has them but with a batch before: shapes that go together, and dtypes.

    Other types than plain tensors may have no memory to read.
    """
    import torch

    batch, heads, head_dim, d_state = state.shape
    (taps, channels), inner, seq = weights.kernel.shape, heads * head_dim, xbc.shape[1]
    wide = [dt, state, *(tensor for tensor in weights[:5] if isinstance(tensor, torch.Tensor))]
    given = [tensor for tensor in (xbc, gate, earlier) if tensor is not None]
    kinds = torch.Tensor, torch.nn.Parameter
    return (
        d_state <= MOST_STATE
        and taps <= MOST_TAPS
        and heads % groups == 0
        and weights.norm_group > 0
        and inner % weights.norm_group == 0
        and channels == inner + 2 * groups * d_state
        and (weights.bias is None or weights.bias.shape == (channels,))
        and weights.A.shape == weights.D.shape == (heads,)
        and weights.norm.shape == (inner,)
        and xbc.shape == (batch, seq, channels)
        and gate.shape == (batch, seq, inner)
        and dt.shape == (batch, seq, heads)
        and (earlier is None or (earlier.shape == (batch, channels, taps) and earlier.is_contiguous()))
        and xbc.dtype in (torch.float32, torch.bfloat16)
        and all(tensor.dtype == xbc.dtype for tensor in given)
        and all(tensor.dtype == torch.float32 for tensor in wide)
        and all(tensor.is_contiguous() for tensor in wide if tensor is not dt)
        and all(tensor.stride(-1) == 1 for tensor in (xbc, gate, dt))
        and all(type(tensor) in kinds and tensor.is_cpu for tensor in (*wide, *given))
    )


_CHUNKS, _VECTORS = partial(Loop, name="chunks"), partial(Loop, name="vectors")


def loop() -> Loop | None:
    """The loop; None where it cannot be had, or is switched off."""
    return available("scan", Loop)


def chunks() -> Loop | None:
    """The one of chunks.c with tiles; None where it cannot be had, or is switched off. It takes what `fits_chunks`."""
    return available("chunks", _CHUNKS)


def vectors() -> Loop | None:
    """The same with AVX512-BF16."""
    return available("vectors", _VECTORS)


def fits_chunks(weights: Weights, xbc: Tensor, state: Tensor) -> bool:
    """Whether a sequence that `fits` is one for chunks: bfloat16, and of shapes that fill tiles.

    A short one leaves most of a chunk empty.
    """
    *_, head_dim, d_state = state.shape
    return (
        xbc.element_size() == 2
        and xbc.shape[1] >= LEAST_TOKENS
        and len(weights.kernel) == 4
        and head_dim in (32, 64)
        and d_state % 32 == weights.norm_group % 32 == 0
    )
