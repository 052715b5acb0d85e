"""The recurrence of Mamba2 and its convolution, in plain PyTorch, with gradients: one scan for every release.

For each head, with a state h of shape [head_dim, d_state]:

    h_t = exp(dt_t * A) * h_{t-1} + dt_t * x_t B_t^T        y_t = h_t C_t + D * x_t

is computed chunk by chunk in its matrix form (structured state space duality, arXiv 2405.21060, section 6).
Heads come in groups that share B and C: head h reads group h // (heads / groups).
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

# The result does not depend on the length of a chunk. Shorter than the usual 256 is faster on a CPU and takes
# memory in proportion.
MAX_CHUNK = 64


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int = MAX_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a sequence.

    x: [batch, seq, heads, head_dim]. dt: [batch, seq, heads], not negative; a token with dt = 0 leaves the
    state as it is. A: [heads], negative. B, C: [batch, seq, groups, d_state]. D: [heads]. All of one dtype.
    state: [batch, heads, head_dim, d_state], what earlier tokens left; zero where None.
    Returns y, shaped as x, and the state after the last token. Memory beyond the inputs and y grows with
    chunk_size, not with seq (but for what autograd keeps).
    """
    batch, seq, heads, head_dim = x.shape
    groups, d_state = B.shape[-2:]
    chunk_size = min(chunk_size, seq)
    per_group = heads // groups
    future = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=x.device).triu(1)
    weighted = x * dt[..., None]
    outputs = []
    for start in range(0, seq, chunk_size):
        here = slice(start, start + chunk_size)
        inputs = weighted[:, here]
        b, c = B[:, here].transpose(1, 2), C[:, here].transpose(1, 2)  # [batch, groups, length, d_state]
        length = inputs.shape[1]

        # elapsed[i] - elapsed[j] is the exponent of the decay between two tokens. Both can be large where
        # their difference is small, hence the wider type.
        elapsed = (dt[:, here] * A).transpose(1, 2).to(_wide(x)).cumsum(-1)  # [batch, heads, length]
        between = (elapsed[..., :, None] - elapsed[..., None, :]).to(x.dtype)
        # Above the diagonal the exponent is positive and may overflow: masked before exp, so that no inf * 0
        # appears, here or in the gradient.
        decay = between.masked_fill(future[:length, :length], -torch.inf).exp()
        scores = (c @ b.mT)[:, :, None] * decay.view(batch, groups, per_group, length, length)
        y = (scores.flatten(1, 2) @ inputs.transpose(1, 2)).transpose(1, 2)

        if state is not None:
            carried = c @ state.reshape(batch, groups, per_group * head_dim, d_state).mT
            carried = carried.transpose(1, 2).reshape(batch, length, heads, head_dim)
            y = y + carried * elapsed.exp().to(x.dtype).transpose(1, 2)[..., None]
        outputs.append(y)

        remaining = (elapsed[..., -1:] - elapsed).exp().to(x.dtype).transpose(1, 2)
        inputs = (inputs * remaining[..., None]).reshape(batch, length, groups, per_group * head_dim)
        added = (inputs.permute(0, 2, 3, 1) @ b).reshape(batch, heads, head_dim, d_state)
        if state is not None:
            added = added + state * elapsed[..., -1].exp().to(x.dtype)[..., None, None]
        state = added
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    assert state is not None
    return (y if D is None else y + D[:, None] * x), state


def step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor | None = None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over one token: as `scan`, without the axis seq."""
    batch, heads, head_dim = x.shape
    groups, d_state = B.shape[-2:]
    weighted = (x * dt[..., None]).view(batch, groups, -1, 1)
    added = (weighted * B[:, :, None]).view(batch, heads, head_dim, d_state)
    state = torch.addcmul(added, state, (dt * A).exp()[..., None, None])
    y = (state.view(batch, groups, -1, d_state) @ C[..., None]).view(batch, heads, head_dim)
    return (y if D is None else torch.addcmul(y, x, D[:, None])), state


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution: y_t = bias + sum_k weight_k * x_{t - (taps - 1) + k}.

    x: [batch, seq, channels]. weight: [channels, 1, taps]. bias: [channels].
    state: [batch, channels, taps], the inputs before the first token, oldest first; zeros where None.
    lengths: [batch], the tokens of each row that count; those after them are padding.
    Returns y in the dtype of the weight, shaped as x, and the state after the last token that counts, in the
    dtype of x.
    """
    batch, seq, channels = x.shape
    taps = weight.shape[-1]
    earlier = x.new_zeros(batch, taps, channels) if state is None else state.mT.to(x)
    inputs = torch.cat([earlier, x], 1)[:, 1:].to(weight.dtype)
    kernel = weight[:, 0].T.contiguous()
    y = inputs[:, :seq] * kernel[0] if bias is None else torch.addcmul(bias, inputs[:, :seq], kernel[0])
    for k in range(1, taps):
        y = torch.addcmul(y, inputs[:, k : k + seq], kernel[k])
    return y, last_inputs(x, taps, state, lengths=lengths)


def last_inputs(x: Tensor, taps: int, state: Tensor | None, *, lengths: Tensor | None = None) -> Tensor:
    """The state that `causal_conv` returns: [batch, channels, taps]."""
    earlier = x.new_zeros(len(x), taps, x.shape[-1]) if state is None else state.mT.to(x)
    if lengths is None:
        last = torch.cat([earlier, x[:, -taps:]], 1)[:, -taps:]
    else:
        last = take(torch.cat([earlier, x], 1), lengths[:, None] + torch.arange(taps, device=x.device))
    return last.mT.contiguous()


def _wide(x: Tensor) -> torch.dtype:
    return x.dtype if x.device.type == "mps" else torch.float64  # MPS has no float64


def take(x: Tensor, index: Tensor) -> Tensor:
    """x: [batch, seq, channels], index: [batch, n]; returns [batch, n, channels]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
