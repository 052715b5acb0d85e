"""Configs in every dialect, and the ones that must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zamba_compat.errors import ConfigError
from zamba_compat.layout.config import dialect_of, normalise_config, read_config, to_release_config

TYPES = ["mamba", "hybrid", "mamba", "mamba", "hybrid", "hybrid"]
CLASSIC: dict[str, Any] = {
    "model_type": "zamba2",
    "num_hidden_layers": 6,
    "layers_block_type": TYPES,
    "hybrid_layer_ids": [1, 4, 5],
    "num_mem_blocks": 2,
    "hidden_size": 64,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "n_mamba_heads": 4,
    "adapter_rank": 8,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "use_shared_attention_adapter": True,
    "rope_theta": 5000,
    "torch_dtype": "bfloat16",
}
CURRENT: dict[str, Any] = {
    **{key: value for key, value in CLASSIC.items() if key not in ("rope_theta", "torch_dtype")},
    "layers_block_type": ["linear_attention" if name == "mamba" else name for name in TYPES],
    "rope_parameters": {"rope_theta": 5000, "rope_type": "default"},
    "dtype": "bfloat16",
}
FORK: dict[str, Any] = {
    "model_type": "zamba2",
    "num_hidden_layers": 6,
    "layers_block_type": ["m", "g", "m", "m", "g", "g"],
    "num_mem_blocks": 2,
    "hidden_size": 64,
    "state_size": 16,
    "conv_dimension": 4,
    "expansion_factor": 2,
    "mamba_headdim": 32,
    "lora_rank": 8,
    "ffn_hidden_size": 256,
    "num_attention_heads": 4,
    "gated_linear_unit": True,
    "use_shared_block_lora": True,
    "use_shared_attention_lora": True,
    "rope_theta": 5000,
}
NATIVE: dict[str, Any] = {
    "num_layers": 6,
    "layer_mapping": ["m", "g", "m", "m", "g", "g"],
    "num_mem_blocks": 2,
    "hidden_size": 64,
    "state_size": 16,
    "conv_dimension": 4,
    "expansion_factor": 2,
    "mamba_headdim": 32,
    "lora_rank": 8,
    "num_mem_heads": 4,
    "num_attention_heads": 4,
    "padded_vocab_size": 32000,
    "rms_norm": True,
    "use_mem_mlp": True,
    "use_shared_block_lora": True,
}
ZAMBA: dict[str, Any] = {
    "model_type": "zamba",
    "num_hidden_layers": 10,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
}
ZAMBA_TYPES = ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba", "mamba"]


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def refused(config: object) -> str:
    with pytest.raises(ConfigError) as caught:
        normalise_config(config)
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "dialect"),
    [(CLASSIC, "classic"), (CURRENT, "current"), (FORK, "zyphra-fork"), (NATIVE, "zyphra-native")],
)
def test_every_dialect_says_the_same(config: dict[str, Any], dialect: str) -> None:
    assert dialect_of(config) == dialect
    known = normalise_config(config)
    for key in ("model_type", "num_hidden_layers", "layers_block_type", "hybrid_layer_ids", "num_mem_blocks"):
        assert known[key] == CLASSIC[key], key
    for key in ("mamba_d_state", "mamba_expand", "n_mamba_heads", "adapter_rank", "num_attention_heads"):
        assert known[key] == CLASSIC[key], key
    assert dialect_of(known) == "classic"


def test_the_names_of_the_layer_types_tell_the_fork() -> None:
    for name in ("m", "g"):
        assert dialect_of({"layers_block_type": [name]}) == "zyphra-fork"


def test_fork_keys_become_those_of_transformers() -> None:
    known = normalise_config({**FORK, "kv_channels": 16})
    assert known == {
        **without(CLASSIC, "torch_dtype"),
        "mamba_d_conv": 4,
        "mamba_headdim": 32,
        "kv_channels": 16,
    }


def test_native_keys_become_those_of_transformers() -> None:
    known = normalise_config({**NATIVE, "layernorm_epsilon": 1e-5})
    assert (known["vocab_size"], known["rms_norm_eps"]) == (32000, 1e-5)
    assert not {"num_layers", "layer_mapping", "num_mem_heads", "rms_norm", "state_size"} & set(known)


def test_zyphra_head_dim_is_64_when_not_written() -> None:
    assert normalise_config(without(FORK, "mamba_headdim"))["n_mamba_heads"] == 2
    assert "n_mamba_heads" not in normalise_config(without(CLASSIC, "n_mamba_heads"))


@pytest.mark.parametrize("config", [CLASSIC, CURRENT, FORK, NATIVE, ZAMBA])
def test_normalising_twice_is_once_and_leaves_the_input_alone(config: dict[str, Any]) -> None:
    before = json.dumps(config)
    once = normalise_config(config)
    assert normalise_config(once) == once
    assert json.dumps(config) == before


@pytest.mark.parametrize("config", [CLASSIC, CURRENT, FORK, NATIVE, ZAMBA])
def test_current_and_classic_say_the_same(config: dict[str, Any]) -> None:
    assert normalise_config(to_release_config(config, "current")) == normalise_config(config)
    assert normalise_config(to_release_config(config)) == normalise_config(config)


def test_writing_keeps_unknown_keys() -> None:
    for dialect in ("classic", "current"):
        assert to_release_config({**CURRENT, "my_note": {"a": [1]}}, dialect)["my_note"] == {"a": [1]}


def test_written_words() -> None:
    classic = to_release_config(CURRENT, "classic")
    assert classic == CLASSIC
    assert to_release_config(CLASSIC, "current") == CURRENT
    with pytest.raises(ConfigError, match="no dialect to write"):
        to_release_config(CLASSIC, "zyphra-fork")  # type: ignore[arg-type]


def test_rope_scaling_survives() -> None:
    rope = {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}
    classic = to_release_config({**CURRENT, "rope_parameters": rope})
    assert classic["rope_theta"] == 7.0
    assert classic["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert to_release_config(classic, "current")["rope_parameters"] == rope
    assert "rope_scaling" not in to_release_config(classic, "current")
    older = {**CLASSIC, "rope_scaling": {"type": "linear", "factor": 2.0}}  # the key's name before rope_type
    assert to_release_config(older, "current")["rope_parameters"] == {**rope, "rope_theta": 5000}


def test_rope_parameters_and_torch_dtype_win() -> None:
    known = normalise_config({**CURRENT, "rope_theta": 10000, "torch_dtype": "float32"})
    assert (known["rope_theta"], known["torch_dtype"]) == (5000, "float32")
    assert "dtype" not in known


def test_layer_types_under_their_newer_name() -> None:
    known = normalise_config({**without(CURRENT, "layers_block_type"), "layer_types": CURRENT["layers_block_type"]})
    assert known["layers_block_type"] == TYPES
    assert "layer_types" not in known
    assert normalise_config({**CURRENT, "layer_types": TYPES})["layers_block_type"] == TYPES


def test_layers_from_hybrid_layer_ids() -> None:
    assert normalise_config(without(CLASSIC, "layers_block_type"))["layers_block_type"] == TYPES


def test_default_pattern_needs_54_layers() -> None:
    bare = without(CLASSIC, "layers_block_type", "hybrid_layer_ids")
    hybrid = normalise_config({**bare, "num_hidden_layers": 54})["hybrid_layer_ids"]
    assert hybrid == [6, 12, 18, 24, 30, 36, 42, 47, 51]
    assert "layers_block_type is missing" in refused(bare)


def test_zamba_pattern() -> None:
    assert normalise_config(ZAMBA)["layers_block_type"] == ZAMBA_TYPES
    published = normalise_config({"model_type": "zamba", "num_hidden_layers": 76})["layers_block_type"]
    hybrid = [layer for layer, name in enumerate(published) if name == "hybrid"]
    assert hybrid == [2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73]
    assert "attn_layer_offset is missing" in refused(without(ZAMBA, "attn_layer_offset"))
    assert "attn_layer_period is 0" in refused({**ZAMBA, "attn_layer_period": 0})


def test_zamba_layers_block_type_wins_over_the_period() -> None:
    config = {**ZAMBA, "layers_block_type": ["linear_attention", "hybrid"] * 5}
    assert normalise_config(config)["layers_block_type"] == ["mamba", "hybrid"] * 5
    assert to_release_config(config)["layers_block_type"] == ["mamba", "hybrid"] * 5


def test_zamba_layers_block_type_is_left_out_where_the_period_says_it() -> None:
    assert to_release_config({**ZAMBA, "layers_block_type": ZAMBA_TYPES}) == ZAMBA


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, ["architecture 'llama'"]),
        ({"model_type": "zamba2_vl"}, ["architecture 'zamba2_vl'"]),
        ({"model_type": ["zamba2"]}, ["['zamba2']"]),
        ({"model_type": None}, ["model_type is missing"]),
        ({"hybrid_layer_ids": [1, 4]}, ["[1, 4]", "[1, 4, 5]"]),
        ({"hybrid_layer_ids": [4, 1, 5]}, ["[4, 1, 5]", "[1, 4, 5]"]),
        ({"hybrid_layer_ids": 1}, ["is 1", "[1, 4, 5]"]),
        ({"num_mem_blocks": 0}, ["num_mem_blocks is 0"]),
        ({"num_mem_blocks": -2}, ["num_mem_blocks is -2"]),
        ({"num_mem_blocks": True}, ["num_mem_blocks is True"]),
        ({"num_mem_blocks": 2.0}, ["num_mem_blocks is 2.0"]),
        ({"num_mem_blocks": "2"}, ["num_mem_blocks is '2'"]),
        ({"num_mem_blocks": 4}, ["num_mem_blocks is 4", "3 hybrid layers"]),
        ({"num_mem_blocks": None}, ["num_mem_blocks is missing"]),
        ({"num_hidden_layers": 7}, ["6 entries", "is 7"]),
        ({"num_hidden_layers": None}, ["num_hidden_layers is missing"]),
        ({"num_hidden_layers": 10**12, "layers_block_type": None}, ["num_hidden_layers is 1000000000000"]),
        ({"layers_block_type": [*TYPES[:-1], "attention"]}, ["layer 5", "'attention'"]),
        ({"layers_block_type": [*TYPES[:-1], ["hybrid"]]}, ["layer 5", "['hybrid']"]),
        ({"layers_block_type": "hybrid"}, ["'hybrid', not a list"]),
        ({"layers_block_type": ["mamba"] * 6, "hybrid_layer_ids": None}, ["No layer is hybrid"]),
        ({"layers_block_type": None, "hybrid_layer_ids": [1, 9]}, ["[1, 9]", "[1]"]),
        (
            {"layer_types": ["mamba"] * 6},
            ["layer_types is ['mamba'", "layers_block_type is ['mamba', 'hybrid'"],
        ),
        ({"state_size": 32}, ["state_size is 32", "mamba_d_state is 16"]),
        ({"use_shared_attention_adapter": "yes"}, ["use_shared_attention_adapter is 'yes'"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings is 1"]),
    ],
)
def test_refusals_say_what_they_found(change: dict[str, Any], said: list[str]) -> None:
    message = refused({**CLASSIC, **change})
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_shared_block_lora": False}, "use_shared_block_lora is False"),
        ({"use_low_rank_mamba_proj": True}, "use_low_rank_mamba_proj is True"),
        ({"mamba_headdim": 48}, "mamba_headdim is 48"),
        ({"num_mem_blocks": None}, "num_mem_blocks is missing"),
        ({"layers_block_type": ["m", "r", "m", "m", "g", "g"]}, "layer 1 'r'"),
    ],
)
def test_zyphra_variants_that_transformers_does_not_have(change: dict[str, Any], said: str) -> None:
    assert said in refused({**FORK, **change})


def test_reads_a_directory_a_file_and_an_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CLASSIC))

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return dict(CLASSIC)

    for source in (tmp_path, str(tmp_path), path, str(path), Config(), CLASSIC):
        assert read_config(source) == CLASSIC
    assert read_config(CLASSIC) is not CLASSIC
    assert "Cannot read a config from an object of type type" in refused(Config)


@pytest.mark.parametrize("source", [None, 3, b"config.json", dict, object()])
def test_refuses_what_is_no_config(source: object) -> None:
    assert "Cannot read a config" in refused(source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not readable JSON"),
        (b"not json", "not readable JSON"),
        (b"[1]", "a JSON list"),
        (b"null", "empty"),
        (b'{"model_type": "zamba2\xff"}', "not readable JSON"),
        (b"[" * 200_000, "not readable JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not readable JSON"),
        (b'{"num_mem_blocks": 1, "num_mem_blocks": 2}', "more than once: num_mem_blocks"),
        (b'{"rope_parameters": {"a": 1, "a": 1}}', "more than once: a"),
    ],
)
def test_refuses_damaged_files(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    message = refused(tmp_path)
    assert said in message
    assert str(path) in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "config.json") in refused(tmp_path)
    assert "Zyphra/Zamba2-7B" in refused("Zyphra/Zamba2-7B")


def test_a_contradiction_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CLASSIC, "num_mem_blocks": 0}))
    assert refused(tmp_path).startswith(f"{path}: num_mem_blocks is 0")


DAMAGE = [None, True, False, -1, 0, 1, 2, 6, 54, 76, 2.5, "", "zamba", "mamba", "g", {}, {"rope_theta": 3}]
DAMAGE += [[], [1], [1, 4, 5], ["mamba"] * 6, ["hybrid"] * 6, ["m", "g"], [[]], [{}], [None] * 6]
KEYS = sorted({*CLASSIC, *CURRENT, *FORK, *NATIVE, *ZAMBA, "layer_types", "rope_scaling"})


@settings(deadline=None, max_examples=300)
@given(
    base=st.sampled_from([CLASSIC, CURRENT, FORK, NATIVE, ZAMBA]),
    damage=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(DAMAGE), max_size=3),
    dropped=st.sampled_from(KEYS),
)
def test_a_damaged_config_is_refused_or_consistent(base: dict[str, Any], damage: dict[str, Any], dropped: str) -> None:
    try:
        known = normalise_config({**without(base, dropped), **damage})
    except ConfigError:
        return
    hybrid = [layer for layer, name in enumerate(known["layers_block_type"]) if name == "hybrid"]
    assert len(known["layers_block_type"]) == known["num_hidden_layers"]
    if known["model_type"] == "zamba2":
        assert known["hybrid_layer_ids"] == hybrid
        assert 1 <= known["num_mem_blocks"] <= len(hybrid)
    assert normalise_config(known) == known
    written = normalise_config(to_release_config(known, "current"))
    assert without(written, "rope_scaling") == without(known, "rope_scaling")
