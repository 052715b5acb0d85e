"""What an attention mask says of the tokens of a step: which are padding, and which sample each belongs to."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .mixer import _known


class Layout(NamedTuple):
    """What a mask says of a step's tokens.

    kept: [batch, seq], False for padding; None without any. documents: [batch, seq], the number of the sample that a
    token belongs to, rising along a row; None where each row is one.
    """

    kept: Tensor | None
    documents: Tensor | None


_last: tuple[Any, ...] = (lambda: None, None, None, None)


def layout(attention_mask: Tensor | None, seq: int) -> Layout:
    """Read a mask [batch, at least seq] of a model's forward; a mask of another rank says nothing of tokens.

    A mask of int32 numbers the samples packed into each row, from 1, with 0 for padding: see `packed_samples`.
    All layers of a forward ask the same, and each answer waits for the device: the last one is remembered.
    """
    global _last
    if attention_mask is None or attention_mask.dim() != 2:
        return Layout(None, None)
    if not _known(attention_mask):
        return _read(attention_mask[:, -seq:])
    if attention_mask.is_inference():  # nothing tells whether it was written to
        return _read(attention_mask[:, -seq:])
    reference, version, length, known = _last
    if reference() is attention_mask and version == attention_mask._version and length == seq:
        return known  # type: ignore[no-any-return]
    found = _read(attention_mask[:, -seq:])
    _last = (weakref.ref(attention_mask), attention_mask._version, seq, found)
    return found


def _read(mask: Tensor) -> Layout:
    kept, packed = mask != 0, mask.dtype == torch.int32
    if not _known(mask):
        return Layout(kept, mask if packed else None)
    packed = packed and bool((mask > 1).any())
    return Layout(None if bool(kept.all()) else kept, mask if packed else None)


def numbers_documents(attention_mask: Tensor | None) -> bool:
    """Whether a mask tells samples of one row apart."""
    return (
        attention_mask is not None
        and attention_mask.dtype == torch.int32
        and layout(attention_mask, attention_mask.shape[-1]).documents is not None
    )
