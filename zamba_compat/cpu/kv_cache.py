"""Keys and values that grow in place: a token is written behind those before it, instead of all being copied for it.

A cache of transformers joins what it holds with what is new, and so copies all of it for every token and layer: 400 MB
a token at 4,096 tokens of 1.2B, into memory that is paged in on the way, a quarter of the token's time. Here the joined
tensor is part of a larger one, and the next token goes into the room behind it. No place is written twice: whoever
still holds an earlier tensor finds it as it was, also where a cache has been cropped or copied and goes on in two ways.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.utils.weak import WeakIdKeyDictionary  # noqa: TID253

from .mixer_torch import can_overwrite

TOKENS = 2  # the dimension that grows, of [batch, heads, tokens, head_dim]
FEWEST = 64  # tokens from which on it gains
_SPARE = 32  # tokens of room at least, or an eighth of those there are


class Room(NamedTuple):
    """Where a tensor may grow. whole: [batch, heads, more tokens, head_dim]. filled: how many are written."""

    whole: Tensor
    filled: list[int]


_rooms: Any = WeakIdKeyDictionary()  # by the tensors that are part of them


def joined(tensors: Any, dim: int = 0, **others: Any) -> Tensor | None:
    """What torch.cat gives of keys or values [batch, heads, tokens, head_dim] and no more new ones.

    None where it is not for here.
    """
    if others or dim not in (TOKENS, TOKENS - 4) or len(tensors) != 2 or torch.is_grad_enabled():
        return None
    before, new = tensors
    if not _go_together(before, new):
        return None
    room: Room | None = _rooms.get(before)
    start, end = before.shape[TOKENS], before.shape[TOKENS] + new.shape[TOKENS]
    # A tensor shorter than what is written was cropped, or has grown already. An inference tensor cannot be written
    # outside of inference mode.
    if room is None or room.filled[0] != start or end > room.whole.shape[TOKENS] or not can_overwrite(room.whole):
        whole = before.new_empty(*before.shape[:TOKENS], end + max(_SPARE, end // 8), before.shape[-1])
        whole[:, :, :start] = before
        room = Room(whole, [start])
    room.whole[:, :, start:end] = new
    room.filled[0] = end
    result: Tensor = room.whole[:, :, :end]
    _rooms[result] = room
    return result


def _go_together(before: Tensor, new: Tensor) -> bool:
    return (
        type(before) is type(new) is Tensor
        and before.dim() == new.dim() == 4
        and before.device.type == new.device.type == "cpu"
        and before.dtype == new.dtype
        and before.shape[:TOKENS] == new.shape[:TOKENS]
        and before.shape[-1] == new.shape[-1]
        and 0 < new.shape[TOKENS] <= before.shape[TOKENS]
    )
