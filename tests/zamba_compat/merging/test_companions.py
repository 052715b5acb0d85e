"""Tokenizers that come with the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.merges import parents, slerp_of, write
from zamba_compat.errors import ConfigError
from zamba_compat.merge import merge


def test_a_tokenizer_has_to_fit_the_embedding(tmp_path: Path) -> None:
    config, base, other = parents()
    first, second = write(tmp_path, config, base, other)
    rows = config["vocab_size"]
    for parent, number in ((first, rows - 1), (second, rows)):
        words = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": number, "content": "<b>"}]}
        (parent / "tokenizer.json").write_text(json.dumps(words))
    yml = slerp_of(first, second, config["num_hidden_layers"], 0.5)
    with pytest.raises(ConfigError, match=f"tokens up to {rows}, the base's embedding {rows} rows"):
        merge(yml | {"tokenizer_source": str(second)}, tmp_path / "out")
    merge(yml | {"tokenizer_source": "base"}, tmp_path / "out")
