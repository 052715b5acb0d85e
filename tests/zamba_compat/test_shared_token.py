"""Which functions are others on a token's way through a shared block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zamba_compat import block_token, embedding_half, growing, packed_blocks, shared_token


class Token:
    product = len


class Cache:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def get_seq_length(self) -> int:
        return self.tokens


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the layer's weights were asked for; they have copies."""
    seen: list[str] = []
    monkeypatch.setattr(block_token, "token_of", lambda *given: seen.append("token") or Token())
    monkeypatch.setattr(packed_blocks, "prompted", lambda layer: seen.append("prompted"))
    return seen


def found(tokens: int, cache: Any, **options: Any) -> set[Any]:
    hidden = torch.empty(1, tokens, 4, **options)
    return set(shared_token._gains(None, hidden, hidden, cache)[1])


def test_what_gains(products: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        assert found(1, Cache(1)) == {F.linear, F.scaled_dot_product_attention}
        assert found(1, Cache(growing.FEWEST)) == {F.linear, F.scaled_dot_product_attention, torch.cat}
        monkeypatch.setattr(block_token, "token_of", lambda *given: None)
        assert products == ["token"] * 2
        assert found(1, Cache(1)) == set()
        assert found(1, Cache(shared_token.FEWEST)) == {F.scaled_dot_product_attention}
        assert found(3, Cache(shared_token.FEWEST_GROWING)) == {torch.cat}
        assert products.count("prompted") == 3
        monkeypatch.setattr(embedding_half, "products", lambda *given: len)
        assert found(3, None) == {F.linear}
    assert found(3, None) == set(), "gradients"


def test_what_does_not(products: list[str]) -> None:
    assert found(1, Cache(5000)) == set(), "gradients"
    with torch.no_grad():
        assert found(1, None) == set()
    assert products == ["prompted"] * 2
    with torch.no_grad():
        assert found(1, Cache(5000), device="meta") == set()
        with torch.autocast("cpu", torch.bfloat16):
            assert found(1, Cache(5000)) == set()


def test_while_a_trace_looks_on(products: list[str]) -> None:
    seen = []

    def traced(x: torch.Tensor) -> torch.Tensor:
        seen.append(found(1, Cache(5000)))
        return x + 1

    with torch.no_grad():
        torch.jit.trace(traced, torch.zeros(2), check_trace=False)
    assert seen == [set()] and not products
