"""The layout of Zyphra's fork of transformers: what each name means, there and back, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from support.synthetic import PATTERNS, Config, State, make_state
from support.zyphra import classic, draw, fork_shapes, hub_of_fork, infos, is_unused, make, same
from zamba_compat.checkpoint.layouts import zyphra_fork
from zamba_compat.checkpoint.layouts.zyphra import zyphra_words
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.layout.sharing import SharingMap

HERE = "some/checkpoint"

# config.json as the fork's save_pretrained writes it: every argument of its config class.
WRITTEN_BY_THE_FORK = {
    "architectures": ["Zamba2ForCausalLM"],
    "model_type": "zamba2",
    "vocab_size": 24,
    "max_position_embeddings": 4096,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "layers_block_type": ["m", "g", "m", "g", "g", "m"],
    "state_size": 5,
    "conv_dimension": 4,
    "expansion_factor": 2,
    "mamba_headdim": 16,
    "mamba_ngroups": 2,
    "add_bias_linear": False,
    "ffn_hidden_size": 128,
    "gated_linear_unit": True,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_channels": 8,
    "num_query_groups": 4,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "num_mem_blocks": 2,
    "use_shared_block_lora": True,
    "use_shared_attention_lora": True,
    "lora_rank": 3,
    "use_mem_eff_path": True,
    "use_mem_rope": True,
    "rope_theta": 5000,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "num_logits_to_keep": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "ft_lora": False,
    "use_long_context": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
}


def stored(pattern: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> tuple[Config, State]:
    """A small model of the fork: its config and its tensors."""
    config = classic(pattern, **overrides)
    return zyphra_words(config), draw(fork_shapes(config), dtype)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_hub_key_is_what_the_fork_runs_there(pattern: str) -> None:
    config = classic(pattern)
    words, state = stored(pattern)
    hub_config, recipes = zyphra_fork.to_hub(infos(state), words, where=HERE)
    assert same(make(recipes, state), hub_of_fork(state, config))
    assert tuple(recipes) == SharingMap.from_config(hub_config).hub_keys()


def test_names_of_two_blocks_by_example() -> None:
    # 7B in small: hybrid layers 2, 3, 5, 7, 9; block 0 is that of positions 0, 2, 4.
    words, state = stored("7B")
    _, recipes = zyphra_fork.to_hub(infos(state), words, where=HERE)
    examples = {
        "model.layers.0.mamba.in_proj.weight": "model.mamba_layers.0.mamba.in_proj.weight",
        "model.layers.5.mamba_decoder.mamba.dt_bias": "model.mamba_layers.5.mamba.dt_bias",
        "model.layers.5.mamba_decoder.input_layernorm.weight": "model.mamba_layers.5.input_layernorm.weight",
        "model.layers.5.linear.weight": "model.linear_layers.2.weight",
        "model.layers.3.shared_transformer.self_attn.k_proj.weight": "model.blocks.1.self_attn.k_proj.weight",
        "model.layers.3.shared_transformer.input_layernorm.weight": "model.blocks.1.input_layernorm.weight",
        "model.layers.2.shared_transformer.feed_forward.down_proj.weight": (
            "model.blocks.0.feed_forward.linear_fc2.weight"
        ),
        "model.layers.2.shared_transformer.feed_forward.gate_up_proj_adapter_list.4.1.weight": (
            "model.blocks.0.feed_forward.linear_fc1_lora_B_list.4.weight"
        ),
        "model.layers.3.shared_transformer.feed_forward.gate_up_proj_adapter_list.3.0.weight": (
            "model.blocks.1.feed_forward.linear_fc1_lora_A_list.3.weight"
        ),
    }
    assert {key: recipes[key].sources for key in examples} == {key: (name,) for key, name in examples.items()}


def test_the_config_in_transformers_words() -> None:
    config = classic("irregular", use_shared_attention_adapter=True)
    config |= {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid", "mamba"], "mamba_ngroups": 2}
    config |= {"num_hidden_layers": 6, "hybrid_layer_ids": [1, 3, 4], "mamba_d_state": 5}
    hub, _ = zyphra_fork.to_hub(infos(draw(fork_shapes(config))), WRITTEN_BY_THE_FORK, where=HERE)
    assert hub["layers_block_type"] == ["mamba", "hybrid", "mamba", "hybrid", "hybrid", "mamba"]
    expected = {"mamba_d_state": 5, "mamba_d_conv": 4, "mamba_expand": 2, "n_mamba_heads": 4, "adapter_rank": 3}
    expected |= {"intermediate_size": 128, "use_shared_attention_adapter": True, "hybrid_layer_ids": [1, 3, 4]}
    expected |= {"rope_theta": 5000, "rms_norm_eps": 1e-6, "num_mem_blocks": 2, "mamba_ngroups": 2}
    assert {key: hub[key] for key in expected} == expected
    assert not hub.keys() & {"state_size", "conv_dimension", "expansion_factor", "lora_rank", "ffn_hidden_size"}
    json.dumps(hub)
    state = make_state(config)
    again, _ = zyphra_fork.from_hub(infos(state), hub, where=HERE)
    assert again == WRITTEN_BY_THE_FORK


def test_the_number_of_blocks_is_proven_by_the_names() -> None:
    words, state = stored("three-blocks")
    del words["num_mem_blocks"]
    assert zyphra_fork.to_hub(infos(state), words, where=HERE)[0]["num_mem_blocks"] == 3


def test_rope_is_off_where_the_config_says_nothing() -> None:
    words, state = stored("2.7B")
    del words["use_mem_rope"]
    assert zyphra_fork.to_hub(infos(state), words, where=HERE)[0]["use_mem_rope"] is False


def test_the_older_spelling_of_in_proj() -> None:
    words, state = stored("1.2B")
    older = {name.replace("in_proj.weight", "in_proj.0.weight"): tensor for name, tensor in state.items()}
    _, new = zyphra_fork.to_hub(infos(state), words, where=HERE)
    _, old = zyphra_fork.to_hub(infos(older), words, where=HERE)
    assert same(make(old, older), make(new, state))


def test_biases_of_linear_layers() -> None:
    config = classic("1.2B", add_bias_linear=True)
    state = draw(fork_shapes(config))
    for name in [name for name in state if name.endswith(("_proj.weight", "linear_fc1.weight", "linear_fc2.weight"))]:
        if "self_attn" not in name:
            state[name.replace(".weight", ".bias")] = state[name][:, 0].clone()
    words = zyphra_words(config)
    hub_config, recipes = zyphra_fork.to_hub(infos(state), words, where=HERE)
    hub = make(recipes, state)
    bias = hub["model.layers.1.shared_transformer.feed_forward.gate_up_proj.bias"]
    assert torch.equal(bias, state["model.blocks.0.feed_forward.linear_fc1.bias"])
    words_again, recipes = zyphra_fork.from_hub(infos(hub), hub_config, where=HERE)
    assert same(make(recipes, hub), state)
    assert words_again == words


@pytest.mark.parametrize("tied", [True, False])
def test_a_stored_head_is_kept(tied: bool) -> None:
    config = classic("2.7B", tie_word_embeddings=tied)
    state = draw(fork_shapes(config) | {"lm_head.weight": (24, 32)})
    hub_config, recipes = zyphra_fork.to_hub(infos(state), zyphra_words(config), where=HERE, keep_unused=True)
    hub = make(recipes, state)
    assert torch.equal(hub["lm_head.weight"], state["lm_head.weight"])
    _, recipes = zyphra_fork.from_hub(infos(hub), hub_config, where=HERE)
    assert same(make(recipes, hub), state)


def test_an_untied_head_that_is_missing() -> None:
    words, state = stored("2.7B", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"These tensors are missing: lm_head\.weight"):
        zyphra_fork.to_hub(infos(state), words, where=HERE)


def test_unused_adapters_may_be_missing() -> None:
    config = classic("7B")
    words, state = stored("7B")
    used = {name: tensor for name, tensor in state.items() if not is_unused(name, config)}
    assert len(used) < len(state)
    for keep_unused in (False, True):
        _, recipes = zyphra_fork.to_hub(infos(used), words, where=HERE, keep_unused=keep_unused)
        assert same(make(recipes, used), hub_of_fork(state, config))


def test_a_missing_tensor_of_the_hub_layout_is_named() -> None:
    config = classic("7B")
    state = make_state(config)
    del state["model.layers.5.linear.weight"]
    with pytest.raises(CheckpointError, match=r"These tensors are missing: model\.layers\.5\.linear\.weight"):
        zyphra_fork.from_hub(infos(state), config, where=HERE)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.blocks.0.self_attn.q_proj.weight", (64, 63)),
        ("model.blocks.1.feed_forward.linear_fc1_lora_B_list.0.weight", (3, 256)),  # one that is not used
        ("model.embed_tokens.weight", (0, 32)),
        ("model.mamba_layers.0.mamba.conv1d.weight", (64, 4)),
    ],
)
def test_a_misshapen_tensor_is_named(name: str, shape: tuple[int, ...]) -> None:
    words, state = stored("7B")
    wanted = tuple(state[name].shape)
    state[name] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as error:
        zyphra_fork.to_hub(infos(state), words, where=HERE)
    assert f"{name} has the shape {shape}, the config asks for {wanted}" in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["model.mamba_layers.0.mamba.x_lora_A.weight", "model.layers.0.mamba.D", "model.blocks.2.input_layernorm.weight"],
)
def test_an_unknown_tensor_is_refused_or_copied(name: str) -> None:
    words, state = stored("7B")
    state[name] = torch.ones(2)
    with pytest.raises(CheckpointError) as error:
        zyphra_fork.to_hub(infos(state), words, where=HERE)
    assert name in str(error.value) and "--allow-unknown" in str(error.value)
    if name == "model.layers.0.mamba.D":  # would hide a tensor of the result
        with pytest.raises(CheckpointError):
            zyphra_fork.to_hub(infos(state), words, where=HERE, allow_unknown=True)
    else:
        _, recipes = zyphra_fork.to_hub(infos(state), words, where=HERE, allow_unknown=True)
        assert make(recipes, state)[name] is state[name]


def test_an_unknown_tensor_of_the_hub_layout_is_refused_or_copied() -> None:
    config = classic("1.2B")
    state = make_state(config) | {"score.weight": torch.ones(2, 32)}
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        zyphra_fork.from_hub(infos(state), config, where=HERE)
    _, recipes = zyphra_fork.from_hub(infos(state), config, where=HERE, allow_unknown=True)
    assert recipes["score.weight"].sources == ("score.weight",)


def test_buffers_of_the_rotary_embedding_are_dropped() -> None:
    words, state = stored("7B")
    state["model.blocks.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    _, recipes = zyphra_fork.to_hub(infos(state), words, where=HERE)
    assert not [name for name in recipes if "inv_freq" in name]


@pytest.mark.parametrize(
    "wrong",
    [
        {"intermediate_size": 64},
        {"hidden_act": "silu"},
        {"time_step_limit": [0.001, 0.1]},
        {"use_mem_rope": True, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"num_mem_blocks": 0},
        {"model_type": "llama"},
    ],
)
def test_a_model_the_fork_cannot_run_is_refused(wrong: dict[str, Any]) -> None:
    config = classic("2.7B")
    state = make_state(config)
    zyphra_fork.from_hub(infos(state), config, where=HERE)
    with pytest.raises(ConfigError, match=re.escape([*map(str, wrong.values())][-1])):
        zyphra_fork.from_hub(infos(state), config | wrong, where=HERE)


def test_an_unbounded_time_step_is_what_the_fork_has() -> None:
    config = classic("2.7B", time_step_limit=[0.0, float("inf")])
    zyphra_fork.from_hub(infos(make_state(config)), config, where=HERE)


def test_adapters_of_mamba_layers_have_no_hub_form() -> None:
    words, state = stored("2.7B")
    with pytest.raises(ConfigError, match="ft_lora"):
        zyphra_fork.to_hub(infos(state), words | {"ft_lora": True}, where=HERE)


def test_zamba_v1_has_no_form() -> None:
    config = {"model_type": "zamba", "num_hidden_layers": 8, "attn_layer_period": 3, "attn_layer_offset": 1}
    with pytest.raises(ConfigError, match="zamba"):
        zyphra_fork.from_hub({}, config, where=HERE)
