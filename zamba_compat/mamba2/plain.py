"""A Mamba2 layer's convolution and scan with PyTorch's operations, in float32, all rows and chunks at once.

On accelerators, where there are no fused kernels or none that can compute what is asked: see fused.py, whose
arguments these are.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import batched_scan
from .mixer_modules import no_autocast
from .recurrence import step

MAX_CHUNK = 256


def parts(mixer: Any, convolved: Tensor) -> list[Tensor]:
    """x [batch, seq, heads, head_dim], B and C [batch, seq, groups, d_state]."""
    bc_size = mixer.n_groups * mixer.ssm_state_size
    x, b, c = torch.split(convolved, [mixer.intermediate_size, bc_size, bc_size], -1)
    sizes = (mixer.num_heads, mixer.n_groups, mixer.n_groups)
    return [part.reshape(*part.shape[:-1], size, -1) for part, size in zip((x, b, c), sizes, strict=True)]


def decay(mixer: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A, [heads]."""
    logarithm: Tensor = mixer.A_log
    return -logarithm.to(dtype).exp()


def sequence(
    mixer: Any,
    xbc: Tensor,
    dt: Tensor,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    kept: Tensor | None,
    documents: Tensor | None,
    limit: tuple[float, float] | None,
) -> tuple[Tensor, Tensor]:
    """Convolution and scan: y [batch, seq, heads, head_dim] and the state."""
    dtype = torch.promote_types(xbc.dtype, torch.float32)
    seq = xbc.shape[1]
    with no_autocast(xbc.device.type):
        if conv_state is not None:
            xbc = torch.cat([conv_state.mT.to(xbc), xbc], 1)
        weight, bias = mixer.conv1d.weight.squeeze(1).to(dtype), mixer.conv1d.bias
        convolved = batched_scan.causal_conv(xbc.to(dtype), weight, None if bias is None else bias.to(dtype), documents)
        x, b, c = parts(mixer, mixer.act(convolved[:, -seq:]))
        dt = _steps(mixer, dt, dtype, limit)
        return batched_scan.scan(
            x,
            dt if kept is None else dt.masked_fill(~kept[..., None], 0),
            decay(mixer, dtype),
            b,
            c,
            D=mixer.D.to(dtype),
            state=None if ssm_state is None else ssm_state.to(dtype),
            chunk_size=min(mixer.chunk_size, MAX_CHUNK),
            documents=documents,
        )


def token(
    mixer: Any,
    xbc: Tensor,
    dt: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    overwrite: bool,
    limit: tuple[float, float] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A single token with a past, also with gradients: y [batch, heads, head_dim] and both states moved on."""
    dtype = torch.promote_types(xbc.dtype, torch.float32)
    with no_autocast(xbc.device.type):
        later = torch.cat([conv_state[..., 1:].to(xbc.dtype), xbc.mT], -1)
        convolved = (later.to(dtype) * mixer.conv1d.weight.squeeze(1).to(dtype)).sum(-1)
        if mixer.conv1d.bias is not None:
            convolved = convolved + mixer.conv1d.bias.to(dtype)
        x, b, c = (part[:, 0] for part in parts(mixer, mixer.act(convolved)[:, None]))
        dt = _steps(mixer, dt, dtype, limit)[:, 0]
        y, state = step(x, dt, decay(mixer, dtype), b, c, D=mixer.D.to(dtype), state=ssm_state.to(dtype))
    if overwrite and not torch.is_grad_enabled():
        return y, conv_state.copy_(later), ssm_state.copy_(state)
    return y, later, state


def _steps(mixer: Any, dt: Tensor, dtype: torch.dtype, limit: tuple[float, float] | None) -> Tensor:
    dt = F.softplus(dt.to(dtype) + mixer.dt_bias.to(dtype))
    return dt if limit is None else dt.clamp(*limit)
