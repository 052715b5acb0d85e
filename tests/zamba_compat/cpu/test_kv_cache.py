"""Keys and values that grow in place: always what torch.cat gives, and nobody's tensor changes."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from zamba_compat.cpu import kv_cache
from zamba_compat.cpu.function_mode import Instead
from zamba_compat.cpu.kv_cache import joined


def some(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


def cat(before: Tensor, new: Tensor, dim: int = -2) -> Tensor:
    with torch.no_grad(), Instead({torch.cat: joined}):
        return torch.cat([before, new], dim=dim)


@pytest.mark.parametrize("dim", [2, -2])
@pytest.mark.parametrize("new", [1, 3])
def test_it_is_cat(dim: int, new: int) -> None:
    """Over more tokens than there is room for at first, without memory for each; copied but now and then."""
    found = wanted = some(5)
    places = []
    for step in range(100):
        found, wanted = cat(found, some(new, step), dim), torch.cat([wanted, some(new, step)], dim)
        assert torch.equal(found, wanted)
        places.append(found.data_ptr())
    assert 1 < len(set(places)) <= 100 * new // kv_cache._SPARE + 1
    assert found.untyped_storage().nbytes() <= (wanted.shape[2] + kv_cache._SPARE) * 1.125 * 2 * 3 * 4 * 4


def test_earlier_tensors_stay_as_they_were() -> None:
    """A cache that is cropped or copied goes on in several ways from one tensor."""
    start = cat(some(8), some(1, 1))
    ways = [cat(start, some(1, seed)) for seed in range(2, 5)]
    longer = [cat(way, some(2, 9)) for way in ways]
    cropped = cat(longer[0][:, :, :9], some(1, 7))
    for seed, way, more in zip(range(2, 5), ways, longer, strict=True):
        assert torch.equal(way, torch.cat([start, some(1, seed)], 2))
        assert torch.equal(more, torch.cat([way, some(2, 9)], 2))
    assert torch.equal(cropped, torch.cat([start, some(1, 7)], 2))
    assert torch.equal(start, torch.cat([some(8), some(1, 1)], 2))


def test_a_tensor_that_was_written_to_is_what_grows() -> None:
    grown = cat(some(8), some(1, 1))
    grown.zero_()
    assert torch.equal(cat(grown, some(1, 2)), torch.cat([torch.zeros(2, 3, 9, 4), some(1, 2)], 2))


def test_inside_and_outside_of_inference_mode() -> None:
    with torch.inference_mode():
        first = cat(some(8), some(1, 1))
    second = cat(first, some(1, 2))
    with torch.inference_mode():
        third = cat(second, some(1, 3))
        fourth = cat(third, some(1, 4))
    assert torch.equal(fourth, torch.cat([some(8), *(some(1, seed) for seed in (1, 2, 3, 4))], 2))
    assert third.data_ptr() == fourth.data_ptr()


def test_what_is_left_to_torch() -> None:
    eight, one = some(8), some(1)
    with torch.no_grad():
        assert joined([eight, one], -2) is not None
        assert joined([eight, one], -2, out=torch.empty(0)) is None
        assert joined([eight, one, one], -2) is None
        assert joined([eight, eight], 0) is None and joined([eight, eight]) is None
        assert joined([one, eight], -2) is None, "a prompt after less than itself"
        assert joined([torch.empty(0), eight], -2) is None, "an empty cache"
        assert joined([eight, one[:, :, :0]], -2) is None
        assert joined([eight, one.double()], -2) is None
        assert joined([eight, one[:1]], -2) is None, "torch says what is wrong with it"
        assert joined([eight.to("meta"), one.to("meta")], -2) is None
        assert joined([torch.nn.Parameter(eight), one], -2) is None
    assert joined([eight, one], -2) is None, "gradients"


def test_nothing_is_kept() -> None:
    gc.collect()
    before = len(kv_cache._rooms)
    grown = cat(some(8), some(1, 1))
    grown = cat(grown, some(1, 1))
    assert len(kv_cache._rooms) == before + 1
    del grown
    gc.collect()
    assert len(kv_cache._rooms) == before
