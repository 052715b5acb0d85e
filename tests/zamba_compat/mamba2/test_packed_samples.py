"""Which token belongs to which sample of a row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zamba_compat.errors import PackedSamplesError
from zamba_compat.mamba2 import packed_samples


def found(
    positions: list[list[int]] | None, mask: list[list[int]] | None = None, **kwargs: Tensor
) -> list[list[int]] | None:
    shape = torch.Size((len(mask or positions or [0]), len((mask or positions or [[0] * 6])[0])))
    ids, kept = (None if given is None else torch.tensor(given) for given in (positions, mask))
    numbers = packed_samples.documents(shape, ids, kept, **kwargs)
    assert numbers is None or numbers.dtype == torch.int32
    return None if numbers is None else numbers.tolist()


def test_documents() -> None:
    assert found([[0, 1, 2, 0, 1, 0]]) == [[1, 1, 1, 2, 2, 3]]
    assert found([[0, 1, 2], [0, 1, 0]]) == [[1, 1, 1], [1, 1, 2]]
    assert found([[5, 6, 7, 8]]) is None  # the rule of transformers: they go on by one
    assert found([[0, 1, 5, 6]]) == [[1, 1, 2, 2]]


def test_padding_is_no_sample() -> None:
    assert found([[1, 1, 0, 1, 2]], [[0, 0, 1, 1, 1]]) is None  # as generate() numbers left padding
    assert found([[0, 1, 1, 1, 2]], [[1, 1, 0, 0, 1]]) is None
    assert found([[0, 1, 2, 3, 4]], [[1, 1, 0, 0, 1]]) is None
    assert found([[9, 0, 1, 0, 1, 9]], [[0, 1, 1, 1, 1, 0]]) == [[0, 1, 1, 2, 2, 0]]


def test_what_is_said_otherwise_goes_first() -> None:
    seq_idx = torch.tensor([[4, 4, 4, 2, 2, 4]])
    assert found([[0, 1, 2, 3, 4, 5]], seq_idx=seq_idx) == [[1, 1, 1, 2, 2, 3]]
    assert found([[0, 1, 2, 3, 4, 5]], cu_seqlens=torch.tensor([0, 2, 6])) == [[1, 1, 2, 2, 2, 2]]
    assert found(None, seq_idx=torch.zeros(1, 6, dtype=torch.int32)) is None
    with pytest.raises(PackedSamplesError):
        found([[0, 1], [0, 1]], cu_seqlens=torch.tensor([0, 1, 2]))


def test_positions() -> None:
    assert packed_samples.positions(torch.tensor([[1, 1, 1, 2, 2, 3]])).tolist() == [[0, 1, 2, 0, 1, 0]]


def test_masks() -> None:
    numbers = torch.tensor([[1, 1, 2, 0]], dtype=torch.int32)
    want = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert packed_samples.attention_mask(numbers, None)[0, 0].int().tolist() == want
    added = packed_samples.attention_mask(numbers, torch.float16)[0, 0]
    assert torch.equal(added == 0, torch.tensor(want).bool()) and added.min() == torch.finfo(torch.float16).min
    assert packed_samples.mask_for("flash_attention_2", numbers[:, :3], torch.float16) is None
    for implementation, rows in (("flash_attention_2", numbers), ("flex_attention", numbers[:, :3])):
        with pytest.raises(PackedSamplesError, match=implementation):
            packed_samples.mask_for(implementation, rows, torch.float16)


@pytest.mark.parametrize("filler", [0, 1])
def test_counting_on_from_padding_begins_no_sample(filler: int) -> None:
    """What generate() does without a cache after a prompt with padding at its end, in releases of either filler."""
    mask = torch.tensor([[1, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 3, filler, filler + 1, filler + 2], [0, 1, 2, 3, 4, 5, 6]])
    assert packed_samples.documents(mask.shape, positions, mask) is None
    positions[0, 5:] = torch.tensor([0, 1])  # a sample
    assert packed_samples.documents(mask.shape, positions, mask) is not None
