"""Perplexity: every token once, whatever the windows."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from _tiny.perplexity import perplexity as by_bytes
from zamba_compat.errors import CheckpointError
from zamba_compat.inference.loading import Loaded
from zamba_compat.inference.scoring import Perplexity, _spans, perplexity

from .conftest import TINY

TEXT = (TINY / "text_base.txt").read_text(encoding="utf-8")[:1300]


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_every_token_counts_once(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    counted = [i for start, end, last in _spans(length, window, stride) for i in range(end - last, end)]
    assert counted == list(range(length))
    assert all(0 < end - start <= window for start, end, _ in _spans(length, window, stride))


def test_is_that_of_the_bytes(tiny: Loaded) -> None:
    found = perplexity(tiny, TEXT)
    assert found.tokens == found.bytes == len(TEXT.encode())
    assert found.per_token == found.per_byte == pytest.approx(by_bytes(tiny.model, TEXT.encode()), rel=1e-5)
    assert found.per_token == pytest.approx(math.exp(found.as_dict()["nats"] / 1300))


def test_is_the_recorded_one(tiny: Loaded) -> None:
    wanted = json.loads((TINY / "perplexity.json").read_text())["models"]["base"]["perplexity"]
    for name in ("base", "tuned"):
        text = (TINY / f"text_{name}.txt").read_text(encoding="utf-8")
        assert perplexity(tiny, text).per_byte == pytest.approx(wanted[name]["perplexity"], rel=1e-3)


def test_a_stride_gives_more_context(tiny: Loaded) -> None:
    apart, overlapping = perplexity(tiny, TEXT, window=64), perplexity(tiny, TEXT, window=64, stride=16)
    assert apart.tokens == overlapping.tokens and overlapping.nats < apart.nats
    assert perplexity(tiny, TEXT, window=64, stride=64) == apart
    for stride in (0, 65):
        with pytest.raises(CheckpointError, match=f"stride is {stride}"):
            perplexity(tiny, TEXT, window=64, stride=stride)


def test_a_perplexity_beyond_all_floats() -> None:
    assert Perplexity(1e6, 1, 1).per_token == Perplexity(1e6, 1, 1).per_byte == math.inf


def uniform(loaded: Loaded) -> Loaded:
    """A model that finds every token equally likely."""

    def model(ids: Any, use_cache: bool) -> Any:
        assert ids.shape[1] > 0
        return SimpleNamespace(logits=torch.zeros(*ids.shape, 320))

    return dataclasses.replace(loaded, model=model)


def test_without_a_begin_token(tiny: Loaded) -> None:
    class Tokenizer:
        bos_token_id = None

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tiny.tokenizer(*args, **kwargs)

    ids = tiny.tokenizer("abcd", add_special_tokens=False, return_tensors="pt").input_ids
    without = dataclasses.replace(tiny, tokenizer=Tokenizer())
    found = perplexity(without, "abcd")
    with torch.inference_mode():
        log_p = tiny.model(ids).logits[0, :-1].double().log_softmax(-1)
    assert found.tokens == 3
    assert found.nats == pytest.approx(-log_p.gather(1, ids[0, 1:, None]).sum().item(), rel=1e-6)
    for text, window in (("abcdefghij", 4), ("abcde", 4), ("abcdefgh", 3)):
        assert perplexity(without, text, window=window).tokens == len(text) - 1
        assert perplexity(uniform(without), text, window=window).per_token == pytest.approx(320)
    for text, window in (("a", 4), ("abc", 1)):
        with pytest.raises(CheckpointError, match="no tokens to score"):
            perplexity(without, text, window=window)


def test_refused(tiny: Loaded) -> None:
    with pytest.raises(CheckpointError, match="no tokens to score"):
        perplexity(tiny, "")
    for stride in (-1, 9):
        with pytest.raises(CheckpointError, match="stride"):
            perplexity(tiny, TEXT, window=8, stride=stride)
