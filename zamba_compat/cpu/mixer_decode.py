"""One token through a Mamba2 mixer with a past, by the loops in C where they take it.

At the speed of the memory a mixer takes two milliseconds, and PyTorch's operations around its two products a third of
that. So a bfloat16 mixer whose modules nobody watches is one call, projections and all; of any other the part between
the projections is.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import nf4
from .blocking import is_plain, is_unwatched
from .mixer_torch import can_overwrite, gated_norm, is_plain_norm
from .native import rows as native_rows
from .native import token as native
from .native.quantized import Quantized
from .workspace import buffers

States = tuple[Tensor, Tensor, Tensor]
_prepared: Any = WeakKeyDictionary()  # of mixers: _Prepared


class _Prepared:
    """A bfloat16 mixer as the loop reads it, good as long as its weights lie where they did.

    mixer: None if the loop cannot. shape, conv_shape, ssm_shape: of a token and of the states.
    """

    def __init__(self, mixer: Any, projections: tuple[Any, Any], weights: tuple[Tensor, ...], lie: list[Any]) -> None:
        self.lie, self.mixer = lie, None
        kernel, dt_bias, a_log, d, norm, *bias = weights
        inner, groups, group = mixer.intermediate_size, mixer.n_groups, mixer.norm.group_size
        rest = native.Weights(kernel[:, 0], bias[0] if bias else None, dt_bias, a_log, d, norm)
        (rows, hidden_size), (out_rows, columns) = map(_size, projections)
        heads, channels = len(d), len(kernel)
        self.shape = 1, 1, hidden_size
        self.conv_shape = 1, channels, kernel.shape[-1]
        self.ssm_shape = 1, heads, inner // heads, mixer.ssm_state_size
        # Of the states and the token nothing is known yet but the shapes they will have.
        like = torch.empty(1, rows, dtype=torch.bfloat16)
        earlier, state = like.new_empty(self.conv_shape), torch.empty(self.ssm_shape)
        if (
            (rows, hidden_size, columns) == (inner + channels + heads, out_rows, inner)
            and all(isinstance(by, Quantized) or native_rows.is_matrix(by) for by in projections)
            and native.fits(rest, like, groups, earlier, state, group)
        ):
            sizes = {"groups": groups, "norm_group": group, "epsilon": mixer.norm.variance_epsilon}
            self.mixer = native.Mixer(rest, self.ssm_shape[1:], *projections, **sizes)


def _size(projection: Any) -> tuple[int, int]:
    quantized = isinstance(projection, Quantized)
    return (projection.rows, projection.columns) if quantized else tuple(projection.shape)


def _projection(module: Any, x: Tensor) -> Any:
    """What calling a projection multiplies x by, a matrix or a Quantized; None where it does anything more."""
    if is_plain(module, x):
        return module.weight if module.bias is None else None
    return nf4.matrix_of(module, x)


def _lies(weight: Any) -> tuple[Any, ...]:
    """All that the loop takes from a weight, but its numbers."""
    if isinstance(weight, Quantized):
        return (bytes(weight.structure()),)
    return type(weight), weight.is_cpu, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


def whole(
    mixer: Any,
    hidden_states: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    *,
    limit: tuple[float, float] | None,
    overwrite: bool,
) -> States | None:
    """A token of one row with both projections, as `mixer.mixer_forward`; None where the loop does not take it."""
    found = native.loop()
    if found is None or native_rows.loop() is None or type(mixer.act) is not torch.nn.SiLU:
        return None
    if hidden_states.dtype != torch.bfloat16 or hidden_states.shape[0] != 1:
        return None
    norm, conv1d = mixer.norm, mixer.conv1d
    if not (
        type(hidden_states) is type(conv_state) is type(ssm_state) is Tensor
        and is_plain_norm(norm)
        and is_unwatched(norm)
    ):
        return None
    projections = _projection(mixer.in_proj, hidden_states), _projection(mixer.out_proj, hidden_states)
    if projections[0] is None or projections[1] is None:
        return None
    weights: tuple[Tensor, ...] = conv1d.weight, mixer.dt_bias, mixer.A_log, mixer.D, norm.weight
    if conv1d.bias is not None:
        weights += (conv1d.bias,)
    lie: list[Any] = [_lies(weight) for weight in (*projections, *weights)]
    lie += mixer.n_groups, norm.group_size, norm.variance_epsilon
    known: _Prepared | None = _prepared.get(mixer)
    if known is None or known.lie != lie:
        known = _prepared[mixer] = _Prepared(mixer, projections, weights, lie)
    if (
        known.mixer is None
        or hidden_states.shape != known.shape
        or conv_state.shape != known.conv_shape
        or ssm_state.shape != known.ssm_shape
        or conv_state.dtype != torch.bfloat16
        or ssm_state.dtype != torch.float32
        or not (conv_state.is_cpu and ssm_state.is_cpu and conv_state.is_contiguous() and ssm_state.is_contiguous())
    ):
        return None
    later, ssm_state = _later(conv_state, ssm_state, overwrite)
    out = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
    room = buffers.take("mixer", hidden_states, known.mixer.room, dtype=torch.float32)
    hidden_states = hidden_states.contiguous()
    found.whole(
        known.mixer, hidden_states, earlier=conv_state, later=later, state=ssm_state, room=room, out=out, limit=limit
    )
    return out, later, ssm_state


def between(
    mixer: Any,
    projected: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    *,
    limit: tuple[float, float] | None,
    overwrite: bool,
) -> States | None:
    """A token of every row from one projection to the other; None where the loop does not take it.

    projected: [batch, 1, ...], what in_proj made of the token. The states as `mixer.mixer_forward` has them.
    Returns y [batch, 1, inner] and both states.
    """
    found = native.loop()
    norm, has_norm = mixer.norm, is_plain_norm(mixer.norm)
    if found is None or not isinstance(mixer.act, torch.nn.SiLU):
        return None
    weights = native.Weights(
        mixer.conv1d.weight[:, 0],
        mixer.conv1d.bias,
        mixer.dt_bias,
        mixer.A_log,
        mixer.D,
        norm.weight if has_norm else None,
    )
    rows, group = projected[:, 0], norm.group_size if has_norm else None
    if not native.fits(weights, rows, mixer.n_groups, conv_state, ssm_state, group):
        return None
    later, ssm_state = _later(conv_state, ssm_state, overwrite)
    room = buffers.take("token", projected, *conv_state.shape[:2], dtype=torch.float32)
    out = projected.new_empty(len(rows), 1, mixer.intermediate_size)
    sizes = {"norm_group": group, "epsilon": norm.variance_epsilon} if has_norm else {}
    found.step(
        weights,
        rows,
        groups=mixer.n_groups,
        earlier=conv_state,
        later=later,
        state=ssm_state,
        room=room,
        out=out,
        limit=limit,
        **sizes,
    )
    if not has_norm:
        inner = mixer.intermediate_size
        gated_norm(norm)(room[:, :inner].contiguous(), rows[:, :inner], out[:, 0])
    return out, later, ssm_state


def _later(conv_state: Tensor, ssm_state: Tensor, overwrite: bool) -> tuple[Tensor, Tensor]:
    """Where the states after the token go: the second is moved on in place."""
    if overwrite and can_overwrite(conv_state) and can_overwrite(ssm_state):
        return conv_state, ssm_state
    return torch.empty_like(conv_state), ssm_state.clone()
