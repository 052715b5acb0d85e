"""Shapes from the config alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from support import synthetic
from zamba_compat.checkpoint.layouts.shapes import DEFAULTS, expected_shapes, fill_in, head_shape
from zamba_compat.errors import ConfigError
from zamba_compat.layout.config import normalise_config
from zamba_compat.layout.published import PUBLISHED
from zamba_compat.layout.sharing import SharingMap


def shapes(config: dict[str, Any], **options: Any) -> dict[str, tuple[int, ...]]:
    full, _ = fill_in(normalise_config(config), "here")
    return expected_shapes(full, SharingMap.from_config(full), **options)


@pytest.mark.parametrize("pattern", [*synthetic.PATTERNS, synthetic.ZAMBA1])
def test_shapes_are_those_of_the_weights(pattern: str) -> None:
    config = synthetic.make_config(pattern)
    assert shapes(config) == {key: tuple(t.shape) for key, t in synthetic.make_state(config).items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_published_number_of_parameters(name: str) -> None:
    found = shapes(PUBLISHED[name].config)
    assert len(found) == PUBLISHED[name].keys
    assert sum(map(math.prod, found.values())) == PUBLISHED[name].parameters


def test_biases_and_heads() -> None:
    config = synthetic.make_config("7B", add_bias_linear=True)
    found = shapes(config)
    assert found["model.layers.0.mamba.in_proj.bias"] == found["model.layers.0.mamba.in_proj.weight"][:1]
    stem = "model.layers.2.shared_transformer.feed_forward."
    assert found[f"{stem}gate_up_proj.bias"] == (2 * config["intermediate_size"],)
    assert head_shape("lm_head.weight", config) == (96, 64)
    assert head_shape("score.weight", {**config, "id2label": {"0": "a", "1": "b", "2": "c"}}) == (3, 64)
    assert head_shape("score.weight", config) is None
    assert head_shape("model.embed_tokens.weight", config) is None
    untied = shapes({**config, "tie_word_embeddings": False})
    assert untied["lm_head.weight"] == (96, 64)


def test_a_base_model_has_no_prefix() -> None:
    config = synthetic.make_config("1.2B")
    assert shapes(config, prefix="") == {key.removeprefix("model."): shape for key, shape in shapes(config).items()}


def test_what_is_missing_gets_the_default() -> None:
    config = normalise_config(synthetic.make_config("7B"))
    for key in (*DEFAULTS["zamba2"], "intermediate_size", "num_key_value_heads"):
        del config[key]
    full, assumed = fill_in({**config, "n_mamba_heads": 80}, "here")
    assert set(assumed) == {*DEFAULTS["zamba2"], "intermediate_size", "num_key_value_heads"} - {"n_mamba_heads"}
    assert (full["hidden_size"], full["intermediate_size"], full["num_key_value_heads"]) == (2560, 10240, 4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_attention_heads": None}, "num_attention_heads missing"),
        ({"use_mem_rope": None}, "use_mem_rope missing"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"adapter_rank": "8"}, "adapter_rank is '8'"),
        ({"mamba_ngroups": True}, "mamba_ngroups is True"),
        ({"n_mamba_heads": 7}, "does not divide"),
    ],
)
def test_sizes_that_make_no_model(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fill_in({**synthetic.make_config("7B"), **change}, "here")
