"""A sequence through a Mamba2 mixer by the loop in C where it takes it: everything between the projections.

`mixer_torch.run` computes the same with PyTorch's operations, chunk by chunk: a prompt of 1.2B on two cores of a
Xeon takes 1.1 times as long with those. In bfloat16 sequences go in chunks where there are instructions for it: a token
and layer take 14 to 17 us with tiles and 33 with AVX512-BF16, 41 to 52 in cpu/native/scan.c (tools/bench_prompt.py).
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from . import gemv, upcast
from .mixer_torch import Weights, is_plain_norm
from .native import scan as native
from .workspace import buffers


def run(
    mixer: Any,
    weights: Weights,
    xbc: Tensor,
    gate: Tensor,
    dt: Tensor,
    *,
    earlier: Tensor | None,
    state: Tensor | None,
    out: Tensor,
) -> Tensor | None:
    """As `mixer_torch.run`, of a mixer's own activation and norm; None, and nothing is done, where it is for that.

    Returns the state after the last token, which is `state` if that was given.
    """
    found, norm = native.loop(), mixer.norm
    if found is None or not isinstance(mixer.act, torch.nn.SiLU) or not is_plain_norm(norm):
        return None
    taps, bias, a, d = weights
    own = native.Weights(
        *(taps.T.contiguous(), bias, a, d, norm.weight.detach().float()), norm.group_size, norm.variance_epsilon
    )
    batch, _, heads = dt.shape
    goes_on, head_dim = state is not None, mixer.intermediate_size // heads
    state = dt.new_empty(batch, heads, head_dim, mixer.ssm_state_size) if state is None else state
    if not (
        native.fits(own, xbc, gate, dt, mixer.n_groups, earlier, state)
        and out.dtype == xbc.dtype  # under autocast it is not
        and out.is_contiguous()
    ):
        return None
    found = (_chunks() if native.fits_chunks(own, xbc, state) else None) or found
    room = buffers.take("sequence", dt, found.room(own, mixer.n_groups, state))
    for row in range(batch):
        found.run(
            own,
            *(xbc[row], gate[row], dt[row]),
            groups=mixer.n_groups,
            earlier=None if earlier is None else earlier[row],
            state=state[row],
            goes_on=goes_on,
            room=room,
            out=out[row],
        )
    return state


def _chunks() -> native.Loop | None:
    """The loop of chunks that this processor is fast with; what limits oneDNN limits it, too."""
    if gemv.has_tiles():
        return native.chunks()
    return native.vectors() if upcast.has_instructions(torch.bfloat16) else None
