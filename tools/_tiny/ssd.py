"""The Mamba2 state-space scan in chunks of matrix products, and the causal convolution before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution as a sum of shifts.

    x: (batch, length, channels); weight: (channels, 1, taps), last tap on the present; bias: (channels,).
    """
    taps = weight.shape[-1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = torch.addcmul(bias, padded[:, taps - 1 :], weight[:, 0, -1])
    for t in range(taps - 1):
        y = torch.addcmul(y, padded[:, t : t + x.shape[1]], weight[:, 0, t])
    return y


def ssd_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y[t] = c[t] . h[t] + d x[t] with h[t] = exp(a dt[t]) h[t-1] + dt[t] b[t] x[t] and h[-1] = 0.

    x: (batch, length, heads, head_dim); dt: (batch, length, heads), positive; a, d: (heads,), a negative;
    b, c: (batch, length, groups, d_state), head i using group i // (heads / groups). Any length.
    Chunked form after Dao and Gu, "Transformers are SSMs" (2024), section 6.
    """
    _batch, length, _heads, _width = x.shape
    groups = b.shape[2]
    pad = -length % CHUNK
    skip = x * d[:, None]
    # dt = 0 in the padding leaves the state alone.
    x, dt, b, c = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x, dt, b, c))

    def grouped(t: Tensor) -> Tensor:
        """(batch, length, heads or groups, ...) to (batch, chunk, group, head in group, time, ...)."""
        t = t.unflatten(1, (-1, CHUNK)).unflatten(3, (groups, -1))
        return t.movedim(2, 4)

    u = grouped(x * dt[..., None])
    s = grouped(dt * a).cumsum(-1)
    b, c = grouped(b), grouped(c)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
    decay = (s[..., :, None] - s[..., None, :]).masked_fill(later, -torch.inf).exp()
    y = (c @ b.mT * decay) @ u

    # What each chunk adds to the state, (..., head_dim, d_state), and the state each chunk starts from.
    gain = (u * (s[..., -1:] - s).exp()[..., None]).mT @ b
    keep = s[..., -1].exp()[..., None, None]
    state = torch.zeros_like(gain[:, 0])
    starts = []
    for i in range(gain.shape[1]):
        starts.append(state)
        state = state * keep[:, i] + gain[:, i]
    y = y + (c @ torch.stack(starts, 1).mT) * s.exp()[..., None]
    y = y.movedim(4, 2).flatten(3, 4).flatten(1, 2)
    return y[:, :length] + skip
