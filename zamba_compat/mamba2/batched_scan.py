"""The recurrence of Mamba2 over all rows and chunks at once: for accelerators, and for samples packed into one row.

`recurrence.scan` goes from chunk to chunk, which suits a processor with caches; here a sequence takes the same few
dozen operations however long it is. The form is that of arXiv 2405.21060, section 6: within each chunk, of each
chunk's own state, from chunk to chunk, and from the states back to the tokens.
"""

from __future__ import annotations

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    state: Tensor | None,
    chunk_size: int,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `recurrence.scan`, all in the dtype of x.

    x: [batch, seq, heads, head_dim]. dt: [batch, seq, heads], not negative. A, D: [heads]. B, C: [batch, seq, groups,
    d_state]. state: [batch, heads, head_dim, d_state], or None for zeros.
    documents: [batch, seq], numbers that never come again once they changed; with each the state starts anew. What
    `state` gives goes to the first.
    Returns y, shaped as x, and the state after the last token. Memory grows with seq * chunk_size.
    """
    batch, seq, heads, head_dim = x.shape
    groups, d_state = B.shape[-2:]
    length = min(chunk_size, seq)
    missing = -seq % length
    weighted = x * dt[..., None]
    steps = dt * A
    if missing:  # tokens with dt = 0 leave the state as it is
        weighted, B, C = (F.pad(t, (0, 0, 0, 0, 0, missing)) for t in (weighted, B, C))
        steps = F.pad(steps, (0, 0, 0, missing))
    chunks = (seq + missing) // length

    # b: batch, c: chunks, g: groups, h: heads of a group, l and s: tokens of a chunk, p: head_dim, n: d_state
    split = (batch, chunks, length, groups)
    weighted = weighted.view(*split, -1, head_dim).permute(0, 1, 3, 4, 2, 5)  # b c g h s p
    b, c = (t.view(*split, d_state).transpose(2, 3) for t in (B, C))  # b c g l n
    elapsed = steps.view(*split, -1).permute(0, 1, 3, 4, 2).cumsum(-1)  # b c g h l
    total = elapsed[..., -1]

    apart = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    leaves = enters = None  # b c 1 1 l: tokens of another document than the chunk's last, or than the last before it
    if documents is not None:
        numbers = torch.cat([documents, documents[:, -1:].expand(-1, missing)], 1).view(batch, chunks, 1, 1, length)
        last = numbers[..., -1:]
        before = torch.cat([numbers[:, :1, ..., :1], last[:, :-1]], 1)
        apart = apart | (numbers[..., :, None] != numbers[..., None, :])
        leaves, enters = numbers != last, numbers != before
        total = total.masked_fill((last != before)[..., 0], -torch.inf)

    # Masked before exp: above the diagonal the exponent is positive and may overflow.
    decay = (elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(apart, -torch.inf).exp()
    y = ((c @ b.mT)[:, :, :, None] * decay) @ weighted

    remaining = elapsed[..., -1:] - elapsed
    remaining = (remaining if leaves is None else remaining.masked_fill(leaves, -torch.inf)).exp()
    added = (weighted * remaining[..., None]).mT.flatten(3, 4) @ b  # b c g (h p) n
    states, state = _between(added.view(batch, chunks, heads, -1), total.flatten(2), state)
    states = states.reshape(batch, chunks, groups, -1, d_state)
    # b c g h l p
    carried = (c @ states.mT).view(*split[:2], groups, length, -1, head_dim).transpose(3, 4)
    reach = (elapsed if enters is None else elapsed.masked_fill(enters, -torch.inf)).exp()
    y = torch.addcmul(y, carried, reach[..., None])

    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, -1, heads, head_dim)[:, :seq]
    return torch.addcmul(y, x, D[:, None]), state.view(batch, heads, head_dim, d_state)


def _between(added: Tensor, total: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """From chunk to chunk.

    added: [batch, chunks, heads, n], what each chunk adds to its end. total: [batch, chunks, heads], the logarithm of
    what it leaves of a state. state: [batch, heads, ...] before the first.
    Returns the states before each chunk, [batch, chunks, heads, n], and that after the last, [batch, heads, n].
    """
    first = torch.zeros_like(added[:, :1]) if state is None else state.flatten(2)[:, None].to(added.dtype)
    sources = torch.cat([first, added], 1).transpose(1, 2)  # batch heads chunks + 1 n
    count = sources.shape[2]
    # exponent[i, j]: the sum of total over the chunks from j to before i, summed anew for each j, without differences.
    lower = torch.ones(count, count, dtype=torch.bool, device=added.device)
    steps = F.pad(total, (0, 0, 1, 0)).transpose(1, 2)[..., None].expand(-1, -1, -1, count)
    exponent = steps.masked_fill(~lower.tril(-1), 0).cumsum(2).masked_fill(~lower.tril(), -torch.inf)
    states = (exponent.exp() @ sources).transpose(1, 2)
    return states[:, :-1], states[:, -1]


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None = None) -> Tensor:
    """Depthwise causal convolution, y_t = bias + sum_k weight_k * x_{t - (taps - 1) + k}, zeros before the start.

    x: [batch, seq, channels]. weight: [channels, taps]. documents: [batch, seq]; inputs of another document count as
    zeros. Returns y, shaped as x.
    """
    channels, taps = weight.shape
    if documents is None:
        y = F.conv1d(x.mT, weight[:, None], bias, padding=taps - 1, groups=channels)
        return y[..., : x.shape[1]].mT
    y = x * weight[:, -1] if bias is None else torch.addcmul(bias, x, weight[:, -1])
    for back in range(1, min(taps, x.shape[1])):
        same = documents[:, back:] == documents[:, :-back]
        earlier = F.pad(x[:, :-back] * same[..., None], (0, 0, back, 0))
        y = torch.addcmul(y, earlier, weight[:, -1 - back])
    return y
