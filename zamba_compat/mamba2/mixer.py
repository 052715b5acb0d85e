"""The Mamba2 mixer in plain PyTorch, for every transformers release.

dt is softplus(dt + dt_bias), limited only by a `time_step_limit` that is not null, never by time_step_min.
That is what the models were trained with: in Zyphra/Zamba2 (mamba2_layer.py) and Zyphra/transformers_zamba2
(src/transformers/models/zamba2/mamba2_layer.py) Mamba2Layer has dt_limit=(0, inf), nothing that builds one
passes another, and its `step` knows no limit; dt_min only draws the initial dt_bias. The default of the fused
kernels is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253

from zamba_compat.cpu import mixer_decode, mixer_prefill
from zamba_compat.cpu import mixer_torch as inference
from zamba_compat.cpu.blocking import BLOCK, project
from zamba_compat.cpu.function_mode import unasked

from . import mixer_modules
from .mixer_modules import Calls, Step
from .recurrence import MAX_CHUNK, causal_conv, last_inputs, scan, step, take


def time_step_limit(config: Any) -> tuple[float, float] | None:
    """The limits of dt that a config sets, or None."""
    limit = getattr(config, "time_step_limit", None)
    return None if limit is None else (float(limit[0]), float(limit[1]))


def mixer_forward(
    mixer: Any,
    hidden_states: Tensor,
    *,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    attention_mask: Tensor | None = None,
    overwrite: bool = False,
    calls: Calls = Calls(),  # noqa: B008
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass of a Zamba2MambaMixer of any release, for one token or more, with a past or without.

    hidden_states: [batch, seq, hidden_size].
    conv_state: [batch, conv_dim, taps] and ssm_state: [batch, heads, head_dim, d_state], what earlier tokens
    left; both or neither.
    attention_mask: [batch, at least seq], 0 for padding anywhere in the row; its last seq columns count, and
    a mask of another rank does not. Each row comes out as if its padding were not there; the norm and out_proj
    find zeros at padding, as in transformers.
    overwrite: without gradients, the states after the last token may take the place of those given.
    calls: how this release calls the mixer's modules, for those that are watched.
    Returns the output, shaped and typed as hidden_states, and both states: the first in the dtype of the
    projection, the second in float32 (float64 where hidden_states is).

    Projections and norm may be quantized, wrapped or offloaded; watched modules are called. Everything
    between them is computed in float32, or float64 where hidden_states is, also under autocast.
    """
    kept = _kept_tokens(attention_mask, hidden_states.shape[1])
    order = lengths = None
    if kept is not None and (conv_state is not None or not _starts_with_padding(kept)):
        # Padding goes behind the tokens, where neither the convolution nor the state can meet it.
        order = kept.logical_not().long().argsort(dim=1, stable=True)
        lengths = kept.sum(1)
    if mixer_modules.is_watched(mixer, calls):
        limit = time_step_limit(mixer.config)
        states = conv_state, ssm_state
        return mixer_modules.forward(mixer, Step(hidden_states, *states, kept, order, lengths, limit), calls)
    if order is not None and kept is not None:
        kept, hidden_states = kept.gather(1, order), take(hidden_states, order)

    # Block by block where nothing is asked of padding, so that memory does not grow with what a block needs.
    block = max(BLOCK // len(hidden_states), MAX_CHUNK)
    if kept is not None or torch.is_grad_enabled() or not _known(hidden_states) or hidden_states.shape[1] <= block:
        output, conv_state, ssm_state = _mix(mixer, hidden_states, conv_state, ssm_state, kept, lengths, overwrite)
        return (output if order is None else take(output, order.argsort(dim=1))), conv_state, ssm_state
    output = torch.empty_like(hidden_states)
    for start in range(0, hidden_states.shape[1], block):
        here = slice(start, start + block)
        output[:, here], conv_state, ssm_state = _mix(
            mixer, hidden_states[:, here], conv_state, ssm_state, None, None, overwrite
        )
        overwrite = True
    assert conv_state is not None and ssm_state is not None
    return output, conv_state, ssm_state


def _mix(
    mixer: Any,
    hidden_states: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    kept: Tensor | None,
    lengths: Tensor | None,
    overwrite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixer_forward` for tokens in an order in which padding does no harm."""
    inner, heads = mixer.intermediate_size, mixer.num_heads
    bc_size = mixer.n_groups * mixer.ssm_state_size
    found, token = None, _token(mixer, hidden_states, conv_state, ssm_state, overwrite) if kept is None else None
    if token is not None:
        with torch._C.DisableTorchFunction():  # each of PyTorch's functions would ask whether it is another here
            found = mixer_decode.whole(mixer, hidden_states, **token)
        if found is not None:
            return found
    projected = project(mixer.in_proj, hidden_states, "in_proj")
    if token is not None:
        with mixer_modules.loaded(mixer.conv1d), mixer_modules.loaded(mixer.norm):
            found = mixer_decode.between(mixer, projected, **token)
    if found is not None:
        y, conv_state, ssm_state = found
        return mixer.out_proj(y.to(hidden_states.dtype)), conv_state, ssm_state
    gate, xbc, dt = torch.split(projected, [inner, inner + 2 * bc_size, heads], -1)
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    with mixer_modules.no_autocast(hidden_states.device.type), mixer_modules.loaded(mixer.conv1d):
        dt = F.softplus(dt.to(dtype) + mixer.dt_bias.to(dtype))
        limit = time_step_limit(mixer.config)
        if limit is not None:
            dt = dt.clamp(*limit)
        if kept is not None:
            padding = ~kept[..., None]
            xbc, dt = xbc.masked_fill(padding, 0), dt.masked_fill(padding, 0)
        if torch.is_grad_enabled() or not _known(xbc):
            y, conv_state, ssm_state = _with_gradients(mixer, gate, xbc, dt, conv_state, ssm_state, lengths)
        else:
            states = conv_state, ssm_state, lengths, overwrite
            with unasked(hidden_states):
                y = hidden_states.new_empty(gate.shape)
                conv_state, ssm_state = _without_gradients(mixer, gate, xbc, dt, *states, out=y)
    if kept is not None:
        y = y.masked_fill(~kept[..., None], 0)
    return mixer.out_proj(y.to(hidden_states.dtype)), conv_state, ssm_state


def _token(
    mixer: Any, x: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None, overwrite: bool
) -> dict[str, Any] | None:
    """What `mixer_decode` is called with for one token with a past; None where x is none."""
    if conv_state is None or x.shape[1] != 1 or torch.is_grad_enabled() or not _known(x):
        return None
    limit = time_step_limit(mixer.config)
    return {"conv_state": conv_state, "ssm_state": ssm_state, "limit": limit, "overwrite": overwrite}


def _with_gradients(
    mixer: Any,
    gate: Tensor,
    xbc: Tensor,
    dt: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything between the projections, in the dtype of dt: y and both states."""
    heads, groups = mixer.num_heads, mixer.n_groups
    bc_size = groups * mixer.ssm_state_size
    weight, bias, a, d = mixer_modules.parameters(mixer, dt.dtype)
    xbc, conv_state = causal_conv(xbc, weight, bias, conv_state, lengths=lengths)
    parts: Any = torch.split(mixer_modules.activated(mixer, xbc), [mixer.intermediate_size, bc_size, bc_size], -1)
    x, b, c = (part.unflatten(-1, (many, -1)) for part, many in zip(parts, (heads, groups, groups), strict=True))
    if ssm_state is not None:
        ssm_state = ssm_state.to(x)
    if ssm_state is not None and x.shape[1] == 1:
        y, ssm_state = step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], D=d, state=ssm_state)
    else:
        chunk_size = min(mixer.chunk_size, MAX_CHUNK)
        y, ssm_state = scan(x, dt, a, b, c, D=d, state=ssm_state, chunk_size=chunk_size)
    return mixer.norm(y.reshape(*gate.shape), gate), conv_state, ssm_state


def _without_gradients(
    mixer: Any,
    gate: Tensor,
    xbc: Tensor,
    dt: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    lengths: Tensor | None,
    overwrite: bool,
    *,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `_with_gradients`, in place; y goes to `out`."""
    weight, bias, a, d = mixer_modules.parameters(mixer, dt.dtype)
    earlier, conv_state = conv_state, last_inputs(xbc, weight.shape[-1], conv_state, lengths=lengths)
    if ssm_state is not None:
        given, ssm_state = ssm_state, ssm_state.to(dt).contiguous()
        if ssm_state is given and not (overwrite and inference.can_overwrite(given)):
            ssm_state = given.clone()
    weights = inference.Weights(weight[:, 0], bias, a, d)
    with mixer_modules.loaded(mixer.norm):
        found = mixer_prefill.run(mixer, weights, xbc, gate, dt, earlier=earlier, state=ssm_state, out=out)
        if found is not None:
            return conv_state, found
        silu = isinstance(mixer.act, torch.nn.SiLU)
        ssm_state = inference.run(
            weights,
            xbc,
            gate,
            dt,
            groups=mixer.n_groups,
            head_dim=mixer.intermediate_size // mixer.num_heads,
            act=partial(F.silu, inplace=True) if silu else partial(mixer_modules.activated, mixer),
            finish=inference.gated_norm(mixer.norm),
            earlier=earlier,
            state=ssm_state,
            out=out,
            chunk_size=min(mixer.chunk_size, MAX_CHUNK),
        )
    return conv_state, ssm_state


def _kept_tokens(attention_mask: Tensor | None, seq: int) -> Tensor | None:
    """Which tokens of a step are no padding: bool, [batch, seq]. None where all of them are kept."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    kept = attention_mask[:, -seq:] != 0
    return None if _known(kept) and bool(kept.all()) else kept


def _starts_with_padding(kept: Tensor) -> bool:
    """Whether all padding stands at the start of its row, where zeros do no harm."""
    return _known(kept) and bool((kept[:, 1:] >= kept[:, :-1]).all())


def _known(x: Tensor) -> bool:
    """Whether a branch may depend on the values of x."""
    return x.device.type != "meta" and not torch.compiler.is_compiling()
