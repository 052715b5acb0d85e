"""The Mamba2 mixer on accelerators, for every transformers release: with the fused kernels, or without any.

The kernels (mamba_ssm, causal_conv1d, or those of the hub) are called as they are; what is decided here is when they
may be, and in which order and layout they get the tokens:

- The kernel of a whole mixer reads the weights of out_proj, conv1d and norm and calls none of them. It is left where
  they are anything but plain: quantized, with an adapter, watched by a hook.
- Padding goes behind the tokens of its row, with a time step of zero, so that neither the convolution nor the state
  meets it.
- Samples packed into one row are told apart by the kernels' `seq_idx`.
- Rows of the convolution's input that do not start at multiples of eight numbers are copied.
- What has no kernel (gradients through a single token with a past, a lower limit of dt among padding) takes PyTorch's
  operations, all chunks at once: see plain.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from zamba_compat.cpu.blocking import is_unwatched

from . import plain
from .mixer import time_step_limit
from .mixer_modules import loaded
from .plain import decay, parts
from .recurrence import last_inputs, take
from .token_layout import layout

NO_STEP = -1e4  # in float16 too; softplus of it is 0
States = tuple[Tensor, Tensor | None, Tensor | None]


class Kernels(NamedTuple):
    """The functions of causal_conv1d and mamba_ssm; of the hub's kernels, those that have their names.

    conv: causal_conv1d_fn. update: causal_conv1d_update. scan: mamba_chunk_scan_combined. step:
    selective_state_update. whole: mamba_split_conv1d_scan_combined.
    """

    conv: Callable[..., Any]
    update: Callable[..., Any]
    scan: Callable[..., Any]
    step: Callable[..., Any]
    whole: Callable[..., Any]


def on_accelerator(x: Tensor) -> bool:
    """Whether x lies where this module is for."""
    return x.device.type not in ("cpu", "meta")


def mixer_forward(
    mixer: Any,
    hidden_states: Tensor,
    *,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    attention_mask: Tensor | None = None,
    overwrite: bool = False,
    kernels: Kernels | None = None,
    remember: bool = True,
) -> States:
    """As `mixer.mixer_forward`, where a mask may number samples too (see `layout`).

    kernels: None for PyTorch's operations. remember: whether states are asked for; else they are None.
    The output at padding is zero.
    """
    batch, seq, _ = hidden_states.shape
    dtype = hidden_states.dtype
    kept, documents = layout(attention_mask, seq)
    limit, order, lengths = time_step_limit(mixer.config), None, None
    if kept is not None:
        order = kept.logical_not().long().argsort(dim=1, stable=True)
        lengths = kept.sum(1)
        hidden_states, kept = take(hidden_states, order), kept.gather(1, order)
        documents = None if documents is None else documents.gather(1, order)
        if limit is not None and limit[0] > 0:
            kernels = None
    if kernels is not None and getattr(mixer, "activation", "silu") not in ("silu", "swish"):
        kernels = None

    projected = mixer.in_proj(hidden_states)
    with loaded(mixer.conv1d):
        if kernels is not None and kept is None and not remember and _is_whole(mixer, projected):
            return _whole(mixer, projected, documents, limit, kernels).to(dtype), None, None
        sizes = [mixer.intermediate_size, projected.shape[-1] - mixer.intermediate_size - mixer.num_heads]
        gate, xbc, dt = torch.split(projected, [*sizes, mixer.num_heads], -1)
        if conv_state is not None and ssm_state is not None and seq == 1 and kept is None:
            states = conv_state, ssm_state, overwrite
            if kernels is None or limit is not None or (torch.is_grad_enabled() and projected.requires_grad):
                y, conv_state, ssm_state = plain.token(mixer, xbc, dt, *states, limit)
            else:
                y, conv_state, ssm_state = _token(mixer, xbc, dt, *states, kernels)
        else:
            if documents is not None and xbc.shape[-1] % 8:
                kernels = None  # the convolution tells samples apart in one layout only, which needs these multiples
            given = conv_state, ssm_state
            if remember:
                conv_state = last_inputs(xbc, mixer.conv1d.weight.shape[-1], conv_state, lengths=lengths)
            if kernels is None:
                y, ssm_state = plain.sequence(mixer, xbc, dt, *given, kept, documents, limit)
            else:
                y, ssm_state = _sequence(mixer, xbc, dt, *given, kept, documents, limit, kernels, remember)
    output = mixer.out_proj(mixer.norm(y.reshape(batch, seq, -1), gate).to(dtype))
    if kept is not None and order is not None:
        output = take(output.masked_fill(~kept[..., None], 0), order.argsort(dim=1))
    return output, conv_state, ssm_state


def _is_whole(mixer: Any, projected: Tensor) -> bool:
    """Whether the kernel of a whole mixer computes what calling its modules would."""
    out_proj, conv1d, norm = mixer.out_proj, mixer.conv1d, mixer.norm
    weights = (out_proj.weight, conv1d.weight, norm.weight) if type(out_proj) is nn.Linear else ()
    return (
        mixer.training
        and getattr(mixer, "use_mem_eff_path", True)
        and projected.shape[-1] % 8 == 0 == conv1d.weight.shape[0] % 8
        and len(weights) > 0
        and type(conv1d) is nn.Conv1d
        and type(norm).__name__ == "Zamba2RMSNormGated"
        and all(type(weight) is nn.Parameter and weight.device == projected.device for weight in weights)
        and all(is_unwatched(module) for module in (out_proj, conv1d, norm))
    )


def _whole(
    mixer: Any, projected: Tensor, documents: Tensor | None, limit: tuple[float, float] | None, kernels: Kernels
) -> Tensor:
    result: Tensor = kernels.whole(
        projected,
        mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias,
        mixer.dt_bias,
        decay(mixer),
        D=mixer.D,
        chunk_size=mixer.chunk_size,
        seq_idx=documents,
        activation="silu",
        rmsnorm_weight=mixer.norm.weight,
        rmsnorm_eps=mixer.norm.variance_epsilon,
        outproj_weight=mixer.out_proj.weight,
        outproj_bias=mixer.out_proj.bias,
        headdim=mixer.head_dim,
        ngroups=mixer.n_groups,
        norm_before_gate=False,
        return_final_states=False,
        **_limited(limit),
    )
    return result


def _sequence(
    mixer: Any,
    xbc: Tensor,
    dt: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    kept: Tensor | None,
    documents: Tensor | None,
    limit: tuple[float, float] | None,
    kernels: Kernels,
    remember: bool,
) -> tuple[Tensor, Tensor | None]:
    """Convolution and scan by the kernels: y [batch, seq, heads, head_dim] and the state."""
    seq, documents = xbc.shape[1], None if documents is None else documents.contiguous()
    if conv_state is not None:
        xbc = torch.cat([conv_state.mT.to(xbc), xbc], 1)
    convolved = kernels.conv(
        _channels(xbc), mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, seq_idx=documents, activation="silu"
    )
    x, b, c = parts(mixer, convolved.mT[:, -seq:])
    if kept is not None:
        dt = dt.masked_fill(~kept[..., None], NO_STEP)
    found = kernels.scan(
        x,
        dt,
        decay(mixer),
        b,
        c,
        chunk_size=mixer.chunk_size,
        D=mixer.D,
        z=None,
        seq_idx=documents,
        return_final_states=remember,
        dt_bias=mixer.dt_bias,
        dt_softplus=True,
        initial_states=ssm_state,
        **_limited(limit),
    )
    return found if remember else (found, None)


def _token(
    mixer: Any, xbc: Tensor, dt: Tensor, conv_state: Tensor, ssm_state: Tensor, overwrite: bool, kernels: Kernels
) -> States:
    """A single token with a past by the kernels, which move both states on in place."""
    if not overwrite:
        conv_state, ssm_state = conv_state.clone(), ssm_state.clone()
    conv_state = conv_state.to(xbc.dtype)
    convolved = kernels.update(xbc.mT, conv_state, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, activation="silu")
    x, b, c = (part[:, 0] for part in parts(mixer, convolved.mT))
    shape = x.shape[1:]
    y = kernels.step(
        ssm_state,
        x,
        dt[:, 0, :, None].expand(-1, *shape),
        decay(mixer)[:, None, None].expand(*shape, b.shape[-1]),
        b,
        c,
        mixer.D[:, None].expand(*shape),
        z=None,
        dt_bias=mixer.dt_bias[:, None].expand(*shape),
        dt_softplus=True,
    )
    return y, conv_state, ssm_state


def _channels(xbc: Tensor) -> Tensor:
    """xbc [batch, seq, channels] as the convolution takes it: [batch, channels, seq], in one of two layouts."""
    if xbc.shape[-1] % 8:
        return xbc.mT.contiguous()
    return (xbc if xbc.stride(0) % 8 == 0 == xbc.stride(1) % 8 and xbc.stride(2) == 1 else xbc.contiguous()).mT


def _limited(limit: tuple[float, float] | None) -> dict[str, Any]:
    return {} if limit is None else {"dt_limit": limit}
