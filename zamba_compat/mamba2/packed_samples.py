"""Samples packed into one row (padding-free training): which token belongs to which, and what attends to what.

Inside a model the samples are told apart by the mask itself: int32, [batch, seq], each sample's number from 1 and 0
for padding. Every release hands a mask of two dimensions on to each Mamba layer, also when a layer is run again for its
gradients. With one sample in a row it means what a mask of ones and zeros means.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from zamba_compat.errors import PackedSamplesError

from .token_layout import numbers_documents


def documents(
    shape: torch.Size,
    position_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor | None:
    """The samples' numbers as described above, or None where every row is one sample.

    shape: [batch, seq]. position_ids: [batch or 1, seq]; without a mask a sample begins where they do not go on by
    one (the rule of transformers.masking_utils), among the tokens that a mask keeps where they do not rise.
    attention_mask: [batch, seq] or None. seq_idx: [batch, seq], another number for each sample. cu_seqlens: [samples +
    1], where samples begin and end in a batch of one row. Both go before position_ids.
    """
    batch, seq = shape
    known = not torch.compiler.is_compiling()
    if seq_idx is None and cu_seqlens is None and (position_ids is None or position_ids.shape[-1] != seq):
        return None
    starts = torch.zeros(batch, seq, dtype=torch.bool, device=_first(seq_idx, cu_seqlens, position_ids).device)
    if seq_idx is not None:
        starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    elif cu_seqlens is not None:
        if batch != 1:
            raise PackedSamplesError(
                f"cu_seqlens is for a batch of one row, this has {batch}.",
                where="cu_seqlens",
                remedy="Pass position_ids that restart at 0 with every sample.",
            )
        starts[0, cu_seqlens[1:-1].long()] = True
    elif position_ids is not None and attention_mask is None:
        starts[:, 1:] = position_ids[:, 1:] - position_ids[:, :-1] != 1
    elif position_ids is not None and attention_mask is not None:
        starts |= _restarts(position_ids.expand(batch, -1), attention_mask != 0)
    if known and not bool(starts.any()):
        return None
    numbers = starts.cumsum(1, dtype=torch.int32) + 1
    return numbers if attention_mask is None else numbers.masked_fill(attention_mask == 0, 0)


def _first(*tensors: Tensor | None) -> Tensor:
    return next(tensor for tensor in tensors if tensor is not None)


def _restarts(positions: Tensor, kept: Tensor) -> Tensor:
    """Kept tokens whose position is not above that of the last kept one before. Both: [batch, seq].

    generate() without a cache counts on from padding at a row's end, whose position is 0 or 1: no sample begins there.
    """
    index = torch.arange(kept.shape[1], device=kept.device).expand_as(kept).masked_fill(~kept, -1)
    before = torch.cat([index.new_full((len(index), 1), -1), index.cummax(1).values[:, :-1]], 1)
    counted_on = torch.zeros_like(kept)
    counted_on[:, 1:] = ~kept[:, :-1] & (positions[:, 1:] == positions[:, :-1] + 1) & (positions[:, 1:] > 0)
    return kept & (before >= 0) & (positions <= positions.gather(1, before.clamp(min=0))) & ~counted_on


def positions(numbers: Tensor) -> Tensor:
    """Positions that restart with every sample: int64, [batch, seq]."""
    index = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    changed = torch.zeros_like(numbers, dtype=torch.bool)
    changed[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return index - index.masked_fill(~changed, 0).cummax(1).values


def attention_mask(numbers: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What may attend to what: [batch, 1, seq, seq], True within a sample and backwards.

    Every token attends to itself, padding too, since a row of nothing is NaN in some implementations.
    dtype: None for booleans; else 0 where it may and the lowest number of this type where not.
    """
    seq = numbers.shape[1]
    allowed = (numbers[:, :, None] == numbers[:, None, :]).tril() & (numbers != 0)[:, None, :]
    allowed = (allowed | torch.eye(seq, dtype=torch.bool, device=numbers.device))[:, None]
    if dtype is None:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=numbers.device).masked_fill(~allowed, torch.finfo(dtype).min)


def mask_for(
    implementation: str, numbers: Tensor, dtype: torch.dtype, *, reads_positions: bool = True
) -> Tensor | None:
    """The mask that an attention implementation of transformers takes; None where it reads position_ids instead.

    reads_positions: whether the release hands them to its attention.
    Raises PackedSamplesError for one that would mix the samples.
    """
    if implementation == "eager":
        return attention_mask(numbers, dtype)
    if implementation == "sdpa":
        return attention_mask(numbers, None)
    if reads_positions and "flash" in implementation and len(numbers) == 1 and not bool((numbers == 0).any()):
        return None
    raise PackedSamplesError(
        f"{implementation} attention would mix the samples of a row.",
        where="position_ids",
        remedy='Load the model with attn_implementation="sdpa", or give each sample a row of its own.',
    )


def arranged(shape: torch.Size, given: dict[str, Any], past: Any) -> dict[str, Any] | None:
    """The arguments of a model's forward with the samples' numbers as their mask, or None where rows are single ones.

    given: the arguments by name; past: the cache among them. Raises PackedSamplesError with a cache that is given:
    a state can go on from a row's last sample only, and attention from all.
    """
    mask = given.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2 or numbers_documents(mask)):
        return None
    told = [given.get(name) for name in ("cu_seqlens", "cu_seq_lens_q")]
    cu_seqlens = next((lengths for lengths in told if lengths is not None), None)
    if mask is not None:
        mask = mask[:, -shape[1] :]
    numbers = documents(shape, given.get("position_ids"), mask, given.get("seq_idx"), cu_seqlens)
    rest = {name: value for name, value in given.items() if name not in ("seq_idx", "cu_seqlens")}
    if numbers is None:
        return rest if len(rest) < len(given) else None
    if past is not None:
        raise PackedSamplesError(
            "Several samples in one row cannot be used with a cache.",
            where="position_ids",
            remedy="Pass no cache and use_cache=False, or give each sample a row of its own.",
        )
    rest |= {"attention_mask": numbers, "use_cache": False}
    if rest.get("position_ids") is None:
        rest["position_ids"] = positions(numbers)
    return rest
