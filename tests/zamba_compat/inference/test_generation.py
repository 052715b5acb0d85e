"""Text piece by piece, and its figures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from zamba_compat.errors import ZambaCompatError
from zamba_compat.inference.generation import Generation, Sampling, encode, generate
from zamba_compat.inference.loading import Loaded

PROMPT = "def read_lines(path):\n"


def greedy(loaded: Loaded, count: int) -> list[int]:
    """The likeliest token each time, without a cache and without generate."""
    ids = encode(loaded, PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            following = loaded.model(ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat((ids, following.view(1, 1)), 1)
    return ids[0, -count:].tolist()  # type: ignore[no-any-return]


def test_greedy(tiny: Loaded) -> None:
    pieces: list[str] = []
    answer = generate(tiny, PROMPT, Sampling(max_new_tokens=16), stream=pieces.append)
    assert answer.text == tiny.tokenizer.decode(greedy(tiny, 16)) == "".join(pieces)
    assert len(pieces) > 1 and PROMPT not in "".join(pieces)
    assert (answer.prompt_tokens, answer.new_tokens, answer.finish_reason) == (len(PROMPT) + 1, 16, "length")
    assert 0 < answer.first_token_seconds < answer.seconds and answer.peak_memory > 0
    rest = answer.seconds - answer.first_token_seconds
    assert answer.as_dict()["tokens_per_second"] == pytest.approx(15 / rest)
    assert generate(tiny, PROMPT, Sampling(max_new_tokens=16)).text == answer.text


def test_end_token(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = greedy(tiny, 8)
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", tokens[3])
    answer = generate(tiny, PROMPT, Sampling(max_new_tokens=16))
    assert answer.finish_reason == "stop" and answer.new_tokens == tokens.index(tokens[3]) + 1


def test_sampling(tiny: Loaded) -> None:
    texts = set()
    for number in (0, 0, 1):
        torch.manual_seed(number)
        texts.add(generate(tiny, PROMPT, Sampling(max_new_tokens=12, temperature=1.5, top_k=50, top_p=0.95)).text)
    assert len(texts) == 2


def test_rate_of_one_token() -> None:
    assert Generation("x", 1, 1, "length", 1.0, 1.0, 0).tokens_per_second == 0.0


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1},
     {"top_k": -1}, {"repetition_penalty": 0}, {"top_p": 0.5}, {"top_k": 5}],
)  # fmt: skip
def test_wrong_values(wrong: dict[str, float]) -> None:
    with pytest.raises(ZambaCompatError, match=next(iter(wrong))):
        dataclasses.replace(Sampling(), **wrong)


def test_empty_prompt(tiny: Loaded) -> None:
    with pytest.raises(ZambaCompatError, match="prompt is empty"):
        generate(tiny, torch.empty(1, 0, dtype=torch.long))
