"""One token through a Mamba2 mixer, between its projections: the loop of token.c."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .quantized import Quantized
from .rows import matrix
from .team import Team, available, team

if TYPE_CHECKING:
    from torch import Tensor

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t


class _Numbers(ctypes.Structure):
    _fields_ = (("data", _pointer), ("narrow", ctypes.c_int64))


class _Mixer(ctypes.Structure):
    _fields_ = (
        *((name, _size) for name in ("heads", "head_dim", "d_state", "groups", "taps", "norm_group")),
        *((name, _Numbers) for name in ("kernel", "bias", "dt_bias", "A_log", "D", "norm")),
        *((name, ctypes.c_float) for name in ("epsilon", "least", "most")),
    )


class _Token(ctypes.Structure):
    _fields_ = (
        *((name, _Numbers) for name in ("gate", "xbc", "dt")),
        *((name, _pointer) for name in ("earlier", "later", "state", "room", "out")),
    )


class _Projection(ctypes.Structure):
    _fields_ = (("plain", _pointer), ("quantized", _pointer), ("rows", _size), ("columns", _size))


def _projection(weight: Tensor | Quantized) -> tuple[_Projection, ctypes.Structure]:
    """With what it points to."""
    if isinstance(weight, Quantized):
        quantized = weight.structure()
        return _Projection(None, ctypes.addressof(quantized), weight.rows, weight.columns), quantized
    plain = matrix(weight)
    return _Projection(ctypes.addressof(plain), None, plain.rows, plain.columns), plain


class Weights(NamedTuple):
    """A mixer's, in float32 or bfloat16, contiguous.

    kernel: [channels, taps], the oldest input's first. bias: [channels] or None. dt_bias, A_log, D: [heads].
    norm: [heads * head_dim], or None where y is wanted without gate and norm.
    """

    kernel: Tensor
    bias: Tensor | None
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm: Tensor | None


class Mixer:
    """A bfloat16 mixer with its projections for `Loop.whole`. Attributes: room, the numbers it takes meanwhile.

    weights: without tensors of any other kind than `fits`, with a norm. shape: heads, head_dim, d_state.
    in_proj: [inner + channels + heads, hidden_size], out_proj: [hidden_size, inner], each a matrix as `rows.is_matrix`
    asks or a Quantized. All tensors have to outlive this.
    """

    def __init__(
        self,
        weights: Weights,
        shape: tuple[int, int, int],
        in_proj: Tensor | Quantized,
        out_proj: Tensor | Quantized,
        *,
        groups: int,
        norm_group: int,
        epsilon: float,
    ) -> None:
        channels, taps = weights.kernel.shape
        self.given = _Mixer(*shape, groups, taps, norm_group, *map(_numbers, weights))
        self.given.epsilon = epsilon
        (self.in_proj, first), (self.out_proj, second) = _projection(in_proj), _projection(out_proj)
        self._kept = first, second
        inner = self.out_proj.columns
        self.room = max(self.in_proj.columns, inner) + channels + (self.in_proj.rows + inner + 1) // 2


class Loop:
    """The functions of token.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._whole: Any = getattr(functions, "zamba_compat_mixer", None)  # where there is `rows.loop` too
        if self._whole is not None:
            structures = [ctypes.POINTER(kind) for kind in (Team, _Mixer, _Projection, _Projection)]
            self._whole.argtypes, self._whole.restype = structures + [_pointer] * 6, None
        self._token = functions.zamba_compat_token
        self._token.argtypes = [ctypes.POINTER(Team), ctypes.POINTER(_Mixer), ctypes.POINTER(_Token), _size]
        self._token.restype = None

    def step(
        self,
        weights: Weights,
        projected: Tensor,
        *,
        groups: int,
        earlier: Tensor,
        later: Tensor,
        state: Tensor,
        room: Tensor,
        out: Tensor,
        limit: tuple[float, float] | None = None,
        norm_group: int = 0,
        epsilon: float = 0.0,
    ) -> None:
        """Convolve, scan, gate and norm one token of each row; all of a shape and dtype that `fits`.

        projected: [batch, inner + channels + heads], gate, x, B, C and dt of the token.
        earlier: [batch, channels, taps]; later, which may be the same, gets the inputs moved on.
        state: [batch, heads, head_dim, d_state], moved on.
        room: [batch, channels] of float32; without a norm its first `inner` columns come out as y, ungated.
        out: [batch, inner], with a norm what it makes of them, in the dtype of `projected`.
        limit: of dt. norm_group: numbers that are normed together.
        """
        batch, heads, head_dim, d_state = state.shape
        channels, taps = weights.kernel.shape
        inner = heads * head_dim
        least, most = limit or (0.0, math.inf)
        mixer = _Mixer(heads, head_dim, d_state, groups, taps, norm_group, *map(_numbers, weights))
        mixer.epsilon, mixer.least, mixer.most = epsilon, least, most
        tokens = (_Token * batch)()
        start, size, narrow = projected.data_ptr(), projected.element_size(), projected.element_size() == 2
        for row, token in enumerate(tokens):
            first = start + row * (inner + channels + heads) * size
            token.gate = first, narrow
            token.xbc = first + inner * size, narrow
            token.dt = first + (inner + channels) * size, narrow
            token.earlier = earlier.data_ptr() + row * channels * taps * size
            token.later = later.data_ptr() + row * channels * taps * size
            token.state = state.data_ptr() + row * inner * d_state * 4
            token.room = room.data_ptr() + row * channels * 4
            token.out = out.data_ptr() + row * inner * size
        self._token(team(), mixer, tokens, batch)

    def whole(
        self,
        mixer: Mixer,
        x: Tensor,
        *,
        earlier: Tensor,
        later: Tensor,
        state: Tensor,
        room: Tensor,
        out: Tensor,
        limit: tuple[float, float] | None,
    ) -> None:
        """One row's token by in_proj, what `step` does, and out_proj into `out`; all contiguous, on a CPU.

        x, out: [hidden_size], bfloat16. earlier, later, state: as `step`, of one row. room: [mixer.room], float32.
        """
        given = mixer.given
        given.least, given.most = limit or (0.0, math.inf)
        places = (t.data_ptr() for t in (x, earlier, later, state, room, out))
        self._whole(team(), given, mixer.in_proj, mixer.out_proj, *places)


def fits(
    weights: Weights, projected: Tensor, groups: int, earlier: Tensor, state: Tensor, norm_group: int | None
) -> bool:
    """Whether `Loop.step` takes these: shapes that go together, contiguous on a CPU, of dtypes that it knows.

    Other types than plain tensors may have no memory to read. norm_group: None without a norm.
    """
    import torch

    batch, heads, head_dim, d_state = state.shape
    inner, taps = heads * head_dim, weights.kernel.shape[-1]
    channels = inner + 2 * groups * d_state
    kinds = torch.float32, torch.bfloat16
    return (
        batch > 0
        and heads % groups == 0
        and weights.kernel.shape == (channels, taps)
        and (weights.bias is None or weights.bias.shape == (channels,))
        and all(tensor.shape == (heads,) for tensor in (weights.dt_bias, weights.A_log, weights.D))
        and (weights.norm is None) == (norm_group is None)
        and (weights.norm is None or weights.norm.shape == (inner,))
        and (norm_group is None or (norm_group > 0 and inner % norm_group == 0))
        and projected.shape == (batch, inner + channels + heads)
        and earlier.shape == (batch, channels, taps)
        and earlier.dtype == projected.dtype
        and state.dtype == torch.float32
        and all(
            type(tensor) in (torch.Tensor, torch.nn.Parameter)
            and tensor.dtype in kinds
            and tensor.device.type == "cpu"
            and tensor.is_contiguous()
            for tensor in (*(t for t in weights if t is not None), projected, earlier, state)
        )
    )


def _numbers(tensor: Tensor | None) -> _Numbers:
    return _Numbers() if tensor is None else _Numbers(tensor.data_ptr(), tensor.element_size() == 2)


def loop() -> Loop | None:
    """The loop; None where it cannot be had, or is switched off."""
    return available("token", Loop)
