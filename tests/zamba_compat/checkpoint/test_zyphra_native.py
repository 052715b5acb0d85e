"""The layout of Zyphra's standalone repository: what each name means, there and back, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from support.reference import hybrid_layers
from support.synthetic import PATTERNS, Config, State, make_state
from support.zyphra import classic, draw, fork_shapes, hub_of_fork, infos, make, native_shapes, same
from zamba_compat.checkpoint.layouts import zyphra_fork, zyphra_native
from zamba_compat.checkpoint.layouts.zyphra import zyphra_words
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.layout.config import dialect_of, normalise_config
from zamba_compat.layout.sharing import SharingMap

HERE = "some/checkpoint.pt"
RUNNABLE = [pattern for pattern in PATTERNS if pattern != "grouped-query"]
# What MambaModel.from_pretrained asks config.json for.
ASKED = (
    "num_hidden_layers",
    "hidden_size",
    "state_size",
    "conv_dimension",
    "expansion_factor",
    "num_attention_heads",
    "mamba_headdim",
    "layers_block_type",
    "add_bias_linear",
    "use_shared_block_lora",
    "lora_rank",
    "gated_linear_unit",
    "kv_channels",
    "ffn_hidden_size",
    "vocab_size",
    "num_query_groups",
    "use_mem_rope",
    "num_mem_blocks",
    "mamba_ngroups",
    "use_shared_attention_lora",
)


def stored(pattern: str, dtype: torch.dtype = torch.float32) -> tuple[Config, State]:
    """A small standalone model: the config.json that its own loading reads, and its tensors."""
    config = classic(pattern)
    return zyphra_words(config), draw(native_shapes(config), dtype)


def fork_of_native(state: State, config: Config) -> State:
    """The fork's names for the same tensors; q, k and v row by row."""
    hybrid, heads = hybrid_layers(config), config["num_attention_heads"]
    head_dim = 2 * config["hidden_size"] // heads
    fork: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if name == "embedding.weight":
            fork["model.embed_tokens.weight"] = tensor
        elif name == "decoder.final_layernorm.weight":
            fork["model.final_layernorm.weight"] = tensor
        elif parts[1] == "block_map":
            fork[f"model.linear_layers.{hybrid.index(int(parts[2]))}.weight"] = tensor
        elif parts[1] == "layers":
            rest = {"norm.weight": "input_layernorm.weight", "mixer.in_proj.0.weight": "mamba.in_proj.weight"}
            own = ".".join(parts[3:])
            fork[f"model.mamba_layers.{parts[2]}.{rest.get(own, own.replace('mixer.', 'mamba.'))}"] = tensor
        elif parts[3:] == ["sa", "mixer", "linear_qkv", "weight"]:
            rows: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
            number = 0
            for _ in range(heads):
                for part in "qkv":
                    for _ in range(head_dim):
                        rows[part].append(tensor[number])
                        number += 1
            assert number == len(tensor)
            for part, own_rows in rows.items():
                fork[f"model.blocks.{parts[2]}.self_attn.{part}_proj.weight"] = torch.stack(own_rows)
        else:
            rest = {
                "sa.norm": "input_layernorm",
                "mlp.norm": "pre_ff_layernorm",
                "sa.mixer.linear_proj": "self_attn.o_proj",
            }
            own = ".".join(parts[3:-1])
            own = rest.get(own, own.replace("sa.mixer", "self_attn").replace("mlp.mixer", "feed_forward"))
            fork[f"model.blocks.{parts[2]}.{own}.weight"] = tensor
    assert {name: tuple(tensor.shape) for name, tensor in fork.items()} == fork_shapes(config)
    return fork


@pytest.mark.parametrize("pattern", RUNNABLE)
def test_every_hub_key_is_what_the_standalone_code_runs_there(pattern: str) -> None:
    config = classic(pattern)
    words, state = stored(pattern)
    hub_config, recipes = zyphra_native.to_hub(infos(state), words, where=HERE)
    assert same(make(recipes, state), hub_of_fork(fork_of_native(state, config), config))
    assert tuple(recipes) == SharingMap.from_config(hub_config).hub_keys()


def test_names_of_two_blocks_by_example() -> None:
    # 7B in small: hybrid layers 2, 3, 5, 7, 9; block 0 is that of positions 0, 2, 4.
    words, state = stored("7B")
    _, recipes = zyphra_native.to_hub(infos(state), words, where=HERE)
    examples = {
        "model.embed_tokens.weight": "embedding.weight",
        "model.layers.0.mamba.in_proj.weight": "decoder.layers.0.mixer.in_proj.0.weight",
        "model.layers.0.mamba.norm.weight": "decoder.layers.0.mixer.norm.weight",
        "model.layers.5.mamba_decoder.input_layernorm.weight": "decoder.layers.5.norm.weight",
        "model.layers.5.linear.weight": "decoder.block_map.5.weight",
        "model.layers.3.shared_transformer.self_attn.k_proj.weight": "decoder.blocks.1.sa.mixer.linear_qkv.weight",
        "model.layers.3.shared_transformer.self_attn.o_proj.weight": "decoder.blocks.1.sa.mixer.linear_proj.weight",
        "model.layers.3.shared_transformer.input_layernorm.weight": "decoder.blocks.1.sa.norm.weight",
        "model.layers.3.shared_transformer.pre_ff_layernorm.weight": "decoder.blocks.1.mlp.norm.weight",
        "model.layers.3.shared_transformer.feed_forward.gate_up_proj_adapter_list.3.0.weight": (
            "decoder.blocks.1.mlp.mixer.linear_fc1_lora_A_list.3.weight"
        ),
        "model.final_layernorm.weight": "decoder.final_layernorm.weight",
    }
    assert {key: recipes[key].sources for key in examples} == {key: (name,) for key, name in examples.items()}


def test_heads_are_interleaved_as_q_k_v() -> None:
    q, k, v = (torch.tensor([[part + row] for row in range(4)]) for part in (10, 20, 30))
    qkv = zyphra_native.interleave(q, k, v, heads=2)
    assert qkv.flatten().tolist() == [10, 11, 20, 21, 30, 31, 12, 13, 22, 23, 32, 33]
    for part, tensor in enumerate((q, k, v)):
        taken = zyphra_native.deinterleave(qkv, part=part, heads=2)
        assert torch.equal(taken, tensor)
        assert taken.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()


@pytest.mark.parametrize("pattern", RUNNABLE)
def test_both_layouts_have_one_hub_form(pattern: str) -> None:
    config = classic(pattern)
    words, state = stored(pattern)
    fork = fork_of_native(state, config)
    native_config, native_recipes = zyphra_native.to_hub(infos(state), words, where=HERE, keep_unused=True)
    fork_config, fork_recipes = zyphra_fork.to_hub(infos(fork), words, where=HERE, keep_unused=True)
    assert same(make(native_recipes, state), make(fork_recipes, fork))
    assert native_config == fork_config


def test_the_written_config_serves_both_readers() -> None:
    config = classic("1.2B", rms_norm_eps=1e-6)
    words, _ = zyphra_native.from_hub(infos(make_state(config)), config, where=HERE)
    assert set(ASKED) <= words.keys()
    assert words["num_layers"] == words["num_hidden_layers"] == 7
    assert words["layer_mapping"] == words["layers_block_type"] == ["m", "g", "m", "g", "m", "g", "m"]
    assert (words["mamba_headdim"], words["kv_channels"], words["ffn_hidden_size"]) == (16, 8, 128)
    assert (words["num_mem_heads"], words["num_query_groups"], words["padded_vocab_size"]) == (4, 4, 24)
    assert words["layernorm_epsilon"] == 1e-6
    assert (words["rms_norm"], words["use_mem_mlp"], words["gated_linear_unit"]) == (True, True, True)
    assert dialect_of(words) == "zyphra-native"
    json.dumps(words)


def test_the_config_of_the_repository() -> None:
    # The keys of the config.json in the repository itself, in small.
    config = classic("2.7B", n_mamba_heads=1, mamba_d_state=8)
    words = {
        "num_layers": 11,
        "hidden_size": 32,
        "state_size": 8,
        "conv_dimension": 4,
        "expansion_factor": 2,
        "rms_norm": True,
        "add_bias_linear": False,
        "use_mem_mlp": True,
        "use_shared_block_lora": True,
        "lora_rank": 3,
        "num_mem_heads": 4,
        "num_attention_heads": 4,
        "kv_channels": 8,
        "padded_vocab_size": 24,
        "num_mem_blocks": 2,
        "layer_mapping": ["g" if layer in hybrid_layers(config) else "m" for layer in range(11)],
    }
    state = draw(native_shapes(config))
    hub, recipes = zyphra_native.to_hub(infos(state), words, where=HERE)
    assert same(make(recipes, state), hub_of_fork(fork_of_native(state, config), config))
    expected = {"n_mamba_heads": 1, "use_mem_rope": False, "intermediate_size": 128, "torch_dtype": "float32"}
    expected |= {"architectures": ["Zamba2ForCausalLM"], "model_type": "zamba2", "num_hidden_layers": 11}
    assert {key: hub[key] for key in expected} == expected
    again, _ = zyphra_native.from_hub(infos(make_state(config)), hub, where=HERE)
    assert again.items() >= words.items()


def test_a_hub_config_beside_the_pickled_weights() -> None:
    # As in the published repository, which has both.
    config = classic("2.7B")
    state = draw(native_shapes(config))
    hub, recipes = zyphra_native.to_hub(infos(state), config, where=HERE)
    assert same(make(recipes, state), hub_of_fork(fork_of_native(state, config), config))
    assert hub.items() >= normalise_config(config).items()


@pytest.mark.parametrize("part", "qkv")
def test_a_missing_part_of_linear_qkv_is_named(part: str) -> None:
    config = classic("7B")
    state = make_state(config)
    name = f"model.layers.3.shared_transformer.self_attn.{part}_proj.weight"
    del state[name]
    with pytest.raises(CheckpointError, match=re.escape(name)):
        zyphra_native.from_hub(infos(state), config, where=HERE)


@pytest.mark.parametrize("shape", [(128, 64), (192, 32)])
def test_a_misshapen_linear_qkv_is_named(shape: tuple[int, ...]) -> None:
    words, state = stored("7B")
    name = "decoder.blocks.1.sa.mixer.linear_qkv.weight"
    state[name] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as error:
        zyphra_native.to_hub(infos(state), words, where=HERE)
    assert f"{name} has the shape {shape}, the config asks for (192, 64)" in str(error.value)


def test_q_k_v_of_several_dtypes_do_not_go_together() -> None:
    config = classic("2.7B")
    state = make_state(config)
    name = "model.layers.2.shared_transformer.self_attn.k_proj.weight"
    state[name] = state[name].bfloat16()
    with pytest.raises(CheckpointError) as error:
        zyphra_native.from_hub(infos(state), config, where=HERE)
    assert name in str(error.value) and "BF16, F32" in str(error.value)


def test_an_unknown_tensor_is_refused_or_copied() -> None:
    words, state = stored("1.2B")
    state["decoder.in_projs.0.weight"] = torch.ones(2)
    with pytest.raises(CheckpointError, match=r"decoder\.in_projs\.0\.weight"):
        zyphra_native.to_hub(infos(state), words, where=HERE)
    _, recipes = zyphra_native.to_hub(infos(state), words, where=HERE, allow_unknown=True)
    assert recipes["decoder.in_projs.0.weight"].sources == ("decoder.in_projs.0.weight",)


@pytest.mark.parametrize(
    "name", ["decoder.rotary_pos_emb.inv_freq", "decoder.blocks.0.sa.mixer.dpa.fused_attention._extra_state"]
)
def test_buffers_its_own_loading_ignores_are_dropped(name: str) -> None:
    words, state = stored("1.2B")
    expected = zyphra_native.to_hub(infos(state), words, where=HERE)
    for allow_unknown in (False, True):
        options = {"where": HERE, "allow_unknown": allow_unknown}
        config, recipes = zyphra_native.to_hub(infos(state | {name: torch.ones(2)}), words, **options)
        assert (config, list(recipes)) == (expected[0], list(expected[1]))


def test_a_copy_of_the_tied_head_is_dropped() -> None:
    config = classic("2.7B")
    state = make_state(config)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    _, recipes = zyphra_native.from_hub(infos(state), config, where=HERE)
    assert recipes.keys() == native_shapes(config).keys()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"num_attention_heads": 64, "num_key_value_heads": 64}, "num_attention_heads"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"rope_theta": 500}, "rope_theta"),
        ({"use_long_context": True}, "use_long_context"),
        ({"intermediate_size": 64}, "intermediate_size"),
        ({"hidden_act": "silu"}, "hidden_act"),
    ],
)
def test_a_model_the_standalone_code_cannot_run_is_refused(wrong: dict[str, Any], named: str) -> None:
    config = classic("7B")
    state = make_state(config)
    zyphra_native.from_hub(infos(state), config, where=HERE)
    with pytest.raises(ConfigError, match=named):
        zyphra_native.from_hub(infos(state), config | wrong, where=HERE)


def test_the_rotary_base_of_a_model_without_rope_does_not_matter() -> None:
    config = classic("2.7B", rope_theta=500)
    assert not config["use_mem_rope"]
    zyphra_native.from_hub(infos(make_state(config)), config, where=HERE)
