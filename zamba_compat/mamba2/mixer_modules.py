"""A Mamba2 mixer whose modules somebody watches: each is called as transformers calls it.

Once per forward pass, with the whole tensor, in transformers' shapes and dtypes; where a release computes with a
module's parameters alone, the module is not called. The numbers are those of `mixer.mixer_forward`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from zamba_compat.cpu.blocking import is_only_placed, is_unwatched

from .recurrence import MAX_CHUNK, causal_conv, last_inputs, scan, step, take


class Calls(NamedTuple):
    """How a release calls a mixer's modules, besides in_proj, norm and out_proj.

    convolution: conv1d for a prompt, and act, are called; otherwise their parameters are used.
    squeezed: with a past, in_proj is called with [batch, hidden_size].
    cached: there is a cache.
    """

    convolution: bool = False
    squeezed: bool = False
    cached: bool = False


class Step(NamedTuple):
    """What a mixer is called with, as `mixer.mixer_forward` has it.

    kept: which tokens are no padding, bool [batch, seq], or None for all.
    order: [batch, seq], the tokens' places with padding last, or None where they stay where they are; lengths: [batch],
    how many are no padding.
    """

    hidden_states: Tensor
    conv_state: Tensor | None
    ssm_state: Tensor | None
    kept: Tensor | None
    order: Tensor | None
    lengths: Tensor | None
    limit: tuple[float, float] | None


def is_watched(mixer: Any, calls: Calls) -> bool:
    """Whether somebody sees one of the modules being called that this release calls."""
    names = ("in_proj", "norm", "out_proj", *(("conv1d", "act") if calls.convolution else ()))
    return any(_seen(getattr(mixer, name)) for name in names)


def _seen(module: Any) -> bool:
    """A module, or one within it, as a wrapper's."""
    return isinstance(module, nn.Module) and (
        not (is_unwatched(module) or is_only_placed(module)) or any(_seen(part) for part in module._modules.values())
    )


def forward(mixer: Any, given: Step, calls: Calls) -> tuple[Tensor, Tensor, Tensor]:
    """`mixer.mixer_forward` by the mixer's modules: the output and both states."""
    if calls.convolution:
        return _forward(mixer, given, calls)
    with _told(mixer.conv1d):
        return _forward(mixer, given, calls)


def _forward(mixer: Any, given: Step, calls: Calls) -> tuple[Tensor, Tensor, Tensor]:
    x, kept, order = given.hidden_states, given.kept, given.order
    inner, heads, groups = mixer.intermediate_size, mixer.num_heads, mixer.n_groups
    bc_size = groups * mixer.ssm_state_size
    token = given.conv_state is not None and x.shape[1] == 1
    if kept is not None:
        x = x.masked_fill(~kept[..., None], 0)
    projected = mixer.in_proj(x[:, 0])[:, None] if token and calls.squeezed else mixer.in_proj(x)
    gate, xbc, dt = torch.split(projected, [inner, inner + 2 * bc_size, heads], -1)
    wide = torch.promote_types(x.dtype, torch.float32)
    device = x.device.type
    with no_autocast(device):
        dt = F.softplus(dt.to(wide) + mixer.dt_bias.to(wide))
        dt = dt if given.limit is None else dt.clamp(*given.limit)
    if kept is not None:
        xbc, dt = xbc.masked_fill(~kept[..., None], 0), dt.masked_fill(~kept[..., None], 0)
    if order is not None:
        xbc, dt = take(xbc, order), take(dt, order)
    convolved, conv_state = _convolved(mixer, xbc, given, calls, token, wide)
    with no_autocast(device), loaded(mixer.conv1d):
        _, _, a, d = parameters(mixer, wide)
        parts: Any = torch.split(convolved.to(wide), [inner, bc_size, bc_size], -1)
        y, b, c = (part.unflatten(-1, (many, -1)) for part, many in zip(parts, (heads, groups, groups), strict=True))
        state = None if given.ssm_state is None else given.ssm_state.to(wide)
        if token and state is not None:
            y, state = step(y[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], D=d, state=state)
        else:
            y, state = scan(y, dt, a, b, c, D=d, state=state, chunk_size=min(mixer.chunk_size, MAX_CHUNK))
    y = y.reshape(gate.shape)
    if order is not None:
        y = take(y, order.argsort(dim=1))
    if kept is not None:
        y = y.masked_fill(~kept[..., None], 0)
    y = mixer.norm(y.to(x.dtype) if token else y, gate)
    return mixer.out_proj(y.to(x.dtype)), conv_state, state


def _convolved(
    mixer: Any, xbc: Tensor, given: Step, calls: Calls, token: bool, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """xbc [batch, seq, channels] after convolution and activation, and the convolution's next state."""
    seq, earlier = xbc.shape[1], given.conv_state
    if token or not calls.convolution:
        with no_autocast(xbc.device.type), loaded(mixer.conv1d):
            weight, bias, *_ = parameters(mixer, wide)
            y, state = causal_conv(xbc, weight, bias, earlier, lengths=given.lengths)
        if calls.convolution:
            return mixer.act(y[:, 0].to(xbc.dtype))[:, None], state
        return activated(mixer, y), state
    taps = mixer.conv_kernel_size
    state = last_inputs(xbc, taps, earlier, lengths=given.lengths)
    if earlier is not None:
        xbc = torch.cat([earlier[..., 1:].mT.to(xbc), xbc], 1)
    y = mixer.conv1d(xbc.mT)[..., xbc.shape[1] - seq :]
    if not (calls.squeezed and calls.cached):  # else act is given the room behind the last token, too
        y = y[..., :seq]
    return mixer.act(y.mT)[:, :seq], state


def activated(mixer: Any, x: Tensor) -> Tensor:
    """The activation of x, where no release calls its module."""
    act: Any = mixer.act
    result: Tensor = type(act).forward(act, x) if isinstance(act, nn.Module) else act(x)
    return result


def parameters(mixer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Weight and bias of the convolution, A and D.

    Cast at every call: a copy kept from the last one would be out of date, unnoticed, after a write to `.data`.
    """
    bias = mixer.conv1d.bias
    bias = None if bias is None else bias.to(dtype)
    return mixer.conv1d.weight.to(dtype), bias, -mixer.A_log.to(dtype).exp(), mixer.D.to(dtype)


def no_autocast(device_type: str) -> Any:
    """Autocast would run the matrix products of the scan in 16 bits."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


@contextmanager
def _told(module: Any) -> Iterator[None]:
    """Let a hook of accelerate's kind see a module whose weights alone are used, as transformers does from 5.14 on.

    accelerate's own placement is seen to where the weights are used.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is None or is_only_placed(module):
        yield
        return
    hook.pre_forward(module)
    yield
    hook.post_forward(module, ())


@contextmanager
def loaded(module: Any) -> Iterator[None]:
    """Bring in the weights of a module that accelerate offloaded; its hook runs only when it is called."""
    hook = getattr(module, "_hf_hook", None) if module.weight.device.type == "meta" else None
    if hook is not None:
        hook.pre_forward(module)
    try:
        yield
    finally:
        if hook is not None:
            hook.post_forward(module, ())
