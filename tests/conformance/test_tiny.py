"""The trained pair: perplexity is what it was when they were made, and a mis-tied block wrecks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from _tiny.perplexity import perplexity
from conformance.helpers import load
from conformance.quantization import bnb_config
from quantized_perplexity import swap_blocks

# Not in stock runs: before 5.15 they take minutes over prompts of this length.
pytestmark = pytest.mark.ours

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
RECORDED = json.loads((TINY / "perplexity.json").read_text())["models"]
NAMES = ("base", "tuned")


PART = 3072  # bytes: enough for what costs more than a percent


def measured(directory: Path, text: str, length: int | None = None, **options: Any) -> float:
    """Perplexity per byte on the first `length` bytes of a text, None: on all of it."""
    model = load(directory, torch_dtype=torch.float32, **options)
    return perplexity(lambda ids: model(ids, use_cache=False), (TINY / f"text_{text}.txt").read_bytes()[:length])


@pytest.fixture(scope="module")
def plain() -> float:
    return measured(TINY / "base", "base", PART)


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_is_as_recorded(name: str) -> None:
    assert measured(TINY / name, name) == pytest.approx(recorded(name, name), rel=2e-3)


def test_4_bits_cost_a_few_percent(plain: float) -> None:
    """Swapped blocks, the measure of a mistake, cost 62%: `test_swapped_blocks_wreck_it`."""
    pytest.importorskip("bitsandbytes")
    found = measured(TINY / "base", "base", PART, quantization_config=bnb_config("nf4"))
    assert 1.001 < found / plain < 1.03


def recorded(name: str, text: str) -> float:
    return RECORDED[name]["perplexity"][text]["perplexity"]


def test_swapped_blocks_wreck_it(plain: float, tmp_path: Path) -> None:
    swap_blocks(TINY / "base", tmp_path)
    assert measured(tmp_path, "base", PART) > 1.5 * plain


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_round_trips(name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY / name)
    text = "def f(x):\n\treturn 'höher' + x  # ½\n"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
