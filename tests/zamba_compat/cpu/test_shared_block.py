"""Which functions are replaced in a call of a shared block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zamba_compat.cpu import gemv, kv_cache, shared_block

ATTENTION, JOINED = F.scaled_dot_product_attention, torch.cat


class Cache:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def get_seq_length(self) -> int:
        return self.tokens


def found(tokens: int, cache: Any, **options: Any) -> set[Any]:
    return set(shared_block._gains(torch.empty(1, tokens, 4, **options), cache))


@torch.no_grad()
def test_what_gains() -> None:
    assert found(1, Cache(shared_block.FEWEST - 1)) == set()
    assert found(1, Cache(shared_block.FEWEST)) == {ATTENTION}
    assert found(3, Cache(shared_block.FEWEST)) == set()
    assert found(3, Cache(shared_block.FEWEST_GROWING)) == {JOINED}
    assert found(1, Cache(shared_block.FEWEST_GROWING)) == {ATTENTION, JOINED}


@torch.no_grad()
def test_where_functions_are_replaced_already() -> None:
    with gemv.within():
        assert found(1, Cache(1)) == {ATTENTION}
        assert found(1, Cache(kv_cache.FEWEST)) == {ATTENTION, JOINED}


def test_what_does_not() -> None:
    assert found(1, Cache(5000)) == set(), "gradients"
    with torch.no_grad():
        assert found(1, None) == set()
        assert found(1, Cache(5000), device="meta") == set()
        with torch.autocast("cpu", torch.bfloat16):
            assert found(1, Cache(5000)) == set()


@pytest.mark.filterwarnings("ignore")
def test_while_a_trace_looks_on() -> None:
    seen = []

    def traced(x: torch.Tensor) -> torch.Tensor:
        seen.append(found(1, Cache(5000)))
        return x + 1

    with torch.no_grad():
        torch.jit.trace(traced, torch.zeros(2), check_trace=False)
    assert seen == [set()]
