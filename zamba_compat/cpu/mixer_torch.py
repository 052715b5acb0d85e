"""The Mamba2 mixer without gradients: what `recurrence.scan` and `recurrence.step` compute, in place and in the cache.

On a CPU the passes over a sequence cost more than their arithmetic: memory is slow, and a fresh tensor of a
megabyte is paged in before it is written. So everything between the projections runs chunk by chunk, in buffers
that are made once and that the caches hold: convolution, recurrence, gate and norm of 64 tokens, then the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .blocking import is_only_placed, is_unwatched
from .workspace import buffers

Finish = Callable[[Tensor, Tensor, Tensor], None]


class Weights(NamedTuple):
    """What a layer has besides projections and norm, in the dtype that is computed in.

    taps: [channels, d_conv], the oldest input's first. bias: [channels] or None. A, D: [heads], A negative.
    """

    taps: Tensor
    bias: Tensor | None
    A: Tensor
    D: Tensor


def can_overwrite(tensor: Tensor) -> bool:
    """Whether a tensor may be written in place by someone who owns it."""
    return tensor.is_contiguous() and (torch.is_inference_mode_enabled() or not tensor.is_inference())


def run(
    weights: Weights,
    xbc: Tensor,
    gate: Tensor,
    dt: Tensor,
    *,
    groups: int,
    head_dim: int,
    act: Callable[[Tensor], Tensor],
    finish: Finish,
    earlier: Tensor | None,
    state: Tensor | None,
    out: Tensor,
    chunk_size: int,
) -> Tensor:
    """Convolve and scan, one token or more.

    xbc: [batch, seq, channels] and gate: [batch, seq, inner], of any floating dtype. dt: [batch, seq, heads].
    earlier: [batch, channels, d_conv], the inputs before the first token, zeros where None.
    state: [batch, heads, head_dim, d_state], overwritten; None for a new sequence.
    act: of [..., channels]; may work in place.
    finish: called with y [tokens, inner], the gate of the same tokens and the place for the result; may change y.
    out: [batch, seq, inner], where `finish` writes.
    Returns the state after the last token, which is `state` if that was given.
    """
    batch, seq, channels = xbc.shape
    heads = dt.shape[-1]
    d_state = (channels - heads * head_dim) // (2 * groups)
    goes_on = state is not None
    if state is not None and earlier is not None and seq == 1:
        y = _token(weights, xbc[:, 0], dt[:, 0], groups=groups, act=act, earlier=earlier, state=state)
        finish(y, gate[:, 0], out[:, 0])
        return state
    if state is None:
        state = dt.new_empty(batch, heads, head_dim, d_state)
    taps = weights.taps.T.contiguous()
    for row in range(batch):
        window = _Window(taps, weights.bias, None if earlier is None else earlier[row].T, dt)
        for start in range(0, seq, chunk_size):
            here = slice(start, start + chunk_size)
            convolved = act(window.next(xbc[row, here]))
            y = _chunk(
                weights,
                convolved,
                dt[row, here],
                groups=groups,
                state=state[row],
                goes_on=goes_on or start > 0,
            )
            finish(y, gate[row, here], out[row, here])
    return state


def _token(
    weights: Weights,
    xbc: Tensor,
    dt: Tensor,
    *,
    groups: int,
    act: Callable[[Tensor], Tensor],
    earlier: Tensor,
    state: Tensor,
) -> Tensor:
    """One token of every row, with a past. xbc: [batch, channels], dt: [batch, heads]; returns [batch, inner]."""
    window = torch.cat([earlier[..., 1:].to(xbc.dtype), xbc[..., None]], -1).to(dt.dtype)
    convolved = window.mul_(weights.taps).sum(-1)
    convolved = act(convolved if weights.bias is None else convolved.add_(weights.bias))

    batch, heads, head_dim, d_state = state.shape
    x, b, c = torch.split(convolved, [heads * head_dim, groups * d_state, groups * d_state], -1)
    x, b, c = x.view(batch, heads, head_dim), b.view(batch, groups, 1, d_state), c.view(batch, groups, d_state, 1)
    state.mul_((dt * weights.A).exp_()[..., None, None])
    by_group = state.view(batch, groups, -1, d_state)
    by_group.addcmul_((x * dt[..., None]).view(batch, groups, -1, 1), b)
    if batch * groups == 1:  # a product of matrices would be slower
        y = torch.mv(by_group.view(-1, d_state), c.view(-1)).view(batch, heads, head_dim)
    else:
        y = (by_group @ c).view(batch, heads, head_dim)
    return y.addcmul_(x, weights.D[:, None]).view(batch, -1)


class _Window:
    """The convolution's inputs of one row, with the few before a chunk that it still reaches."""

    def __init__(self, taps: Tensor, bias: Tensor | None, earlier: Tensor | None, like: Tensor) -> None:
        self.taps, self.bias, self.like = taps, bias, like  # taps: [d_conv, channels]
        self.before = len(taps) - 1
        self.tail = like.new_zeros(self.before, taps.shape[1])
        if earlier is not None and self.before:
            self.tail.copy_(earlier[-self.before :])

    def next(self, xbc: Tensor) -> Tensor:
        """y of the next tokens, [length, channels], before the activation."""
        length, channels = xbc.shape
        taps, bias = self.taps, self.bias
        inputs = buffers.take("inputs", self.like, self.before + length, channels)
        inputs[: self.before] = self.tail
        inputs[self.before :] = xbc
        self.tail.copy_(inputs[length:])
        y = buffers.take("convolved", self.like, length, channels)
        if bias is None:
            torch.mul(inputs[:length], taps[0], out=y)
        else:
            torch.addcmul(bias, inputs[:length], taps[0], out=y)
        for k in range(1, len(taps)):
            y.addcmul_(inputs[k : k + length], taps[k])
        return y


def _chunk(weights: Weights, convolved: Tensor, dt: Tensor, *, groups: int, state: Tensor, goes_on: bool) -> Tensor:
    """One chunk of one row: y [length, inner]; the state [heads, head_dim, d_state] moves on.

    convolved: [length, channels]. dt: [length, heads]. Without goes_on the state's content does not count.
    """
    length, heads = dt.shape
    head_dim, d_state = state.shape[1:]
    inner, width = heads * head_dim, heads * head_dim // groups
    x = convolved[:, :inner].view(length, heads, head_dim)
    b, c = convolved[:, inner:].view(length, 2, groups, d_state).permute(1, 2, 0, 3)  # [groups, length, d_state]
    by_group = state.view(groups, width, d_state)

    # As in recurrence.scan: exponents of the decay between two tokens, from differences of a wider type.
    elapsed = (dt * weights.A).T.to(torch.float64 if dt.device.type != "mps" else dt.dtype).cumsum(-1)
    total = elapsed[:, -1:]
    between = buffers.take("between", dt, heads, length, length, dtype=elapsed.dtype)
    torch.sub(elapsed[:, :, None], elapsed[:, None, :], out=between)
    matrix = buffers.take("matrix", dt, heads, length, length)
    # exp is slow where it underflows, products of what comes near it are slow, and above the diagonal it is infinite,
    # where the scores make it zero. A decay to the root of the smallest number is one to nothing.
    lowest = 0.5 * math.log(torch.finfo(dt.dtype).tiny)
    matrix.copy_(between).clamp_(min=lowest, max=0).exp_()
    matrix.view(groups, -1, length, length).mul_((c @ b.mT).tril_()[:, None])
    matrix.mul_(dt.T.contiguous()[:, None])
    matrix.diagonal(dim1=1, dim2=2).add_(weights.D[:, None])
    within = torch.bmm(matrix, x.transpose(0, 1), out=buffers.take("within", dt, heads, length, head_dim))

    y = buffers.take("y", dt, length, inner)
    by_head = y.view(length, heads, head_dim)
    if goes_on:
        for g in range(groups):
            torch.mm(c[g], by_group[g].T, out=y[:, g * width : (g + 1) * width])
        by_head.mul_(elapsed.exp().to(dt.dtype).T[..., None]).add_(within.transpose(0, 1))
    else:
        by_head.copy_(within.transpose(0, 1))

    kept = (total - elapsed).exp().to(dt.dtype).T * dt
    lasting = torch.mul(x, kept[..., None], out=buffers.take("lasting", dt, length, heads, head_dim))
    lasting = lasting.view(length, inner)
    if goes_on:
        state.mul_(total.exp().to(dt.dtype)[..., None])
    for g in range(groups):
        part = lasting[:, g * width : (g + 1) * width].T
        if goes_on:
            by_group[g].addmm_(part, b[g])
        else:
            torch.mm(part, b[g], out=by_group[g])
    return y


def gated_norm(norm: Any) -> Finish:
    """What a mixer's norm does to y and gate, in place where it is transformers' own and nothing watches it."""
    if not is_plain_norm(norm):

        def call(y: Tensor, gate: Tensor, out: Tensor) -> None:
            out.copy_(norm(y, gate))

        return call

    def apply(y: Tensor, gate: Tensor, out: Tensor) -> None:
        gate = buffers.take("gate", y, *gate.shape).copy_(gate)
        grouped = y.mul_(F.silu(gate, inplace=True)).view(len(y), -1, norm.group_size)
        mean = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True).square_().div_(norm.group_size)
        grouped.mul_(mean.add_(norm.variance_epsilon).rsqrt_())
        out.copy_(y.mul_(weight))

    weight = norm.weight.float()
    return apply


def is_plain_norm(norm: Any) -> bool:
    return type(norm).__name__ == "Zamba2RMSNormGated" and (is_unwatched(norm) or is_only_placed(norm))
