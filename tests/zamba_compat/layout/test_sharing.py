"""The sharing map against hand-worked examples, the published counts, real models, and its own laws."""

from __future__ import annotations

import pickle
from collections import Counter
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zamba_compat.errors import ConfigError
from zamba_compat.layout.sharing import Position, SharedKey, SharingMap

PUBLISHED = {
    "1.2B": (38, (5, 11, 17, 23, 29, 35), 1, True),
    "2.7B": (54, (6, 12, 18, 24, 30, 36, 42, 47, 51), 2, False),
    "7B": (81, (6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77), 2, False),
}
UNPUBLISHED = {
    "three blocks": (12, (1, 3, 4, 6, 8, 9, 11), 3, True),
    "hybrid layer 0": (7, (0, 3, 6), 2, False),
    "irregular": (14, (2, 3, 4, 9, 13), 2, True),
    "one position": (3, (1,), 1, True),
    "no sharing": (6, (1, 2, 5), 3, False),
}
T = "shared_transformer"


def config(layers: int, hybrid: tuple[int, ...], blocks: int, attention: bool, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "zamba2",
        "num_hidden_layers": layers,
        "layers_block_type": ["hybrid" if layer in hybrid else "mamba" for layer in range(layers)],
        "num_mem_blocks": blocks,
        "use_shared_attention_adapter": attention,
        **more,
    }


def zamba(layers: int, **more: Any) -> dict[str, Any]:
    pattern = {"attn_layer_period": 3, "attn_layer_offset": 1}
    return {"model_type": "zamba", "num_hidden_layers": layers, **pattern, **more}


SEVEN = SharingMap.from_config(config(*PUBLISHED["7B"]))


def test_positions_of_7b() -> None:
    assert SEVEN.positions[:3] == (Position(0, 6, 0, 6), Position(1, 11, 1, 11), Position(2, 17, 0, 6))
    assert SEVEN.positions[-1] == Position(12, 77, 0, 6)
    assert SEVEN.layers_of(1) == (11, 23, 35, 47, 59, 71)
    assert SEVEN.adapters_of(0) == (0, 2, 4, 6, 8, 10, 12)
    assert (SEVEN.block_of(23), SEVEN.canonical_layer(1), SEVEN.position_of(23).index) == (1, 11, 3)


@pytest.mark.parametrize(("shape", "hub", "expanded"), [("1.2B", 406, None), ("2.7B", 531, None), ("7B", 786, 1018)])
def test_published_counts(shape: str, hub: int, expanded: int | None) -> None:
    sharing = SharingMap.from_config(config(*PUBLISHED[shape]))
    assert len(set(sharing.hub_keys())) == len(sharing.hub_keys()) == hub
    if expanded is not None:
        assert len(set(sharing.expanded_keys())) == len(sharing.expanded_keys()) == expanded


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        (f"model.layers.17.{T}.self_attn.q_proj.weight", f"model.layers.6.{T}.self_attn.q_proj.weight"),
        (f"layers.23.{T}.input_layernorm.weight", f"layers.11.{T}.input_layernorm.weight"),
        (f"layers.17.{T}", f"layers.6.{T}"),
        (
            f"model.layers.29.{T}.feed_forward.down_proj.weight.quant_state.bitsandbytes__nf4",
            f"model.layers.6.{T}.feed_forward.down_proj.weight.quant_state.bitsandbytes__nf4",
        ),
        (
            f"base_model.model.model.layers.71.{T}.self_attn.v_proj.lora_A.default.weight",
            f"base_model.model.model.layers.11.{T}.self_attn.v_proj.lora_A.default.weight",
        ),
        (
            f"model.layers.77.{T}.feed_forward.gate_up_proj_adapter_list.12.1.weight.absmax",
            f"model.layers.6.{T}.feed_forward.gate_up_proj_adapter_list.12.1.weight.absmax",
        ),
        # Adapter 3 is block 1's: under layers of block 0 it is misplaced.
        (
            f"model.layers.17.{T}.feed_forward.gate_up_proj_adapter_list.3.0.weight",
            f"model.layers.11.{T}.feed_forward.gate_up_proj_adapter_list.3.0.weight",
        ),
        (
            f"model.layers.6.{T}.self_attn.linear_k_adapter_list.3",
            f"model.layers.11.{T}.self_attn.linear_k_adapter_list.3",
        ),
    ],
)
def test_canonical_key(key: str, canonical: str) -> None:
    assert SEVEN.canonical_key(key) == canonical
    assert not SEVEN.is_canonical(key)
    assert SEVEN.is_canonical(canonical)
    assert SEVEN.is_misplaced(key) == ("_list.3" in key)
    assert not SEVEN.is_misplaced(canonical)


@pytest.mark.parametrize(
    "key",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.17.linear.weight",
        "model.layers.17.mamba_decoder.mamba.in_proj.weight",
        f"model.layers.7.{T}.self_attn.q_proj.weight",  # not a hybrid layer
        f"model.layers.81.{T}.self_attn.q_proj.weight",
        f"model.layers.017.{T}.self_attn.q_proj.weight",
        f"model.layers.1\u0667.{T}.self_attn.q_proj.weight",  # a digit, but not one of ours
        f"model.layers.{'9' * 5000}.{T}.self_attn.q_proj.weight",
        f"model.layers.17.{T}.feed_forward.gate_up_proj_adapter_list.13.0.weight",  # 13 positions: 0 to 12
        f"model.layers.17.{T}.feed_forward.gate_up_proj_adapter_list.{'9' * 5000}.0.weight",
        f"model.layers.17.{T}.",
        f"model.layers.17.{T}_2.self_attn.q_proj.weight",
        f"model.sublayers.17.{T}.self_attn.q_proj.weight",
        "model.layers.17.shared_transf.self_attn.q_proj.weight",
        "",
    ],
)
def test_keys_that_name_nothing_shared(key: str) -> None:
    assert SEVEN.parse(key) is None
    assert SEVEN.canonical_key(key) == key
    assert SEVEN.aliases(key) == (key,)
    assert SEVEN.at_layer(key, 17) == key
    assert SEVEN.layer_of(key) is None
    assert SEVEN.is_canonical(key)
    assert not SEVEN.is_misplaced(key)


def test_parse() -> None:
    key = f"model.layers.23.{T}.feed_forward.gate_up_proj_adapter_list.10.0.weight"
    suffix = "feed_forward.gate_up_proj_adapter_list.10.0.weight"
    assert SEVEN.parse(key) == SharedKey("model.", 23, suffix, 10)
    assert SEVEN.parse(f"layers.23.{T}.mlp.weight") == SharedKey("", 23, "mlp.weight", None)
    assert SEVEN.parse(f"a.layers.23.{T}") == SharedKey("a.", 23, "", None)
    # An adapter's number is a whole part of the name.
    assert SEVEN.parse(f"layers.6.{T}.feed_forward.gate_up_proj_adapter_list.3x") == SharedKey(
        "", 6, "feed_forward.gate_up_proj_adapter_list.3x", None
    )


def test_aliases_and_at_layer() -> None:
    key = f"model.layers.35.{T}.self_attn.o_proj.weight"
    names = tuple(f"model.layers.{layer}.{T}.self_attn.o_proj.weight" for layer in (11, 23, 35, 47, 59, 71))
    assert SEVEN.aliases(key) == names
    assert SEVEN.at_layer(key, 47) == names[3]
    assert SEVEN.layer_of(key) == 35
    with pytest.raises(ValueError, match="layer 7 is not hybrid"):
        SEVEN.at_layer(key, 7)
    misplaced = f"layers.6.{T}.feed_forward.gate_up_proj_adapter_list.1.0.weight"
    assert SEVEN.aliases(misplaced)[0] == misplaced.replace("layers.6.", "layers.11.")
    assert misplaced not in SEVEN.aliases(misplaced)


def test_shared_suffixes_own_adapters_only() -> None:
    suffixes = SEVEN.shared_suffixes(1)
    assert len(suffixes) == 8 + 6 * 2
    assert "feed_forward.gate_up_proj_adapter_list.3.0.weight" in suffixes
    assert not any("_adapter_list.2." in suffix for suffix in suffixes)


def test_prefixes_and_heads() -> None:
    tied = SharingMap.from_config(config(*PUBLISHED["7B"]))
    apart = SharingMap.from_config(config(*PUBLISHED["7B"], tie_word_embeddings=False))
    assert set(apart.hub_keys()) - set(tied.hub_keys()) == {"lm_head.weight"}
    assert set(apart.hub_keys(prefix="x.model.")) - set(tied.hub_keys(prefix="x.model.")) == {"x.lm_head.weight"}
    assert apart.hub_keys(prefix="") == tied.hub_keys(prefix="")
    assert {f"model.{key}" for key in tied.hub_keys(prefix="")} == set(tied.hub_keys())
    assert {f"model.{key}" for key in tied.expanded_keys(prefix="")} == set(tied.expanded_keys())
    assert {f"model.{key}" for key in tied.shared_keys(prefix="")} == set(tied.shared_keys())
    assert tied.tied_keys()["lm_head.weight"] == "model.embed_tokens.weight"
    assert "lm_head.weight" not in apart.tied_keys()


def test_untied() -> None:
    untied = SEVEN.untied()
    assert untied.num_blocks == len(untied.positions) == 13
    assert [untied.adapters_of(block) for block in range(13)] == [(position,) for position in range(13)]
    assert untied.untied() == untied
    assert untied.hub_keys() == untied.expanded_keys()
    own = f"model.layers.17.{T}.feed_forward.gate_up_proj_adapter_list.2.0.weight"
    assert untied.is_canonical(own)
    assert untied.is_misplaced(own.replace("layers.17", "layers.6"))
    assert untied.canonical_key(own.replace("layers.17", "layers.6")) == own


def test_zamba_shares_one_block() -> None:
    sharing = SharingMap.from_config(zamba(10))
    assert (sharing.hybrid_layers, sharing.num_blocks, sharing.adapters_of(0)) == ((2, 4, 7), 1, ())
    key = "model.layers.7.shared_transf.feed_forward.up_proj.weight"
    assert sharing.canonical_key(key) == key.replace(".7.", ".2.")
    assert sharing.parse(f"model.layers.7.{T}.feed_forward.up_proj.weight") is None
    assert len(sharing.shared_keys()) == 9
    assert len(sharing.expanded_keys()) - len(sharing.hub_keys()) == 2 * 9


def biased(settings: dict[str, Any]) -> set[str]:
    """The modules that have a bias, without their place in the model."""
    keys = [key for key in SharingMap.from_config(settings).hub_keys() if key.endswith(".bias")]
    return {".".join(key.split(".")[-3:-1]) for key in keys}


def test_biases_follow_the_config() -> None:
    shape = PUBLISHED["7B"]
    assert biased(config(*shape)) == {"mamba.conv1d"}
    assert biased(config(*shape, use_conv_bias=False)) == {"mamba.conv1d"}  # the models ignore this flag
    linears = {"mamba.in_proj", "mamba.out_proj", "feed_forward.gate_up_proj", "feed_forward.down_proj"}
    assert biased(config(*shape, add_bias_linear=True)) == {"mamba.conv1d", *linears}
    assert biased(zamba(10)) == biased(zamba(10, add_bias_linear=True)) == {"mamba.conv1d"}
    assert biased(zamba(10, mamba_conv_bias=False)) == set()
    assert biased(zamba(10, mamba_proj_bias=True)) == {"mamba.conv1d", "mamba.in_proj", "mamba.out_proj"}


def test_maps_are_values() -> None:
    same = SharingMap.from_config(config(*PUBLISHED["7B"], hidden_size=99))
    other = SharingMap.from_config(config(*PUBLISHED["7B"], tie_word_embeddings=False))
    assert (same, hash(same), same.digest) == (SEVEN, hash(SEVEN), SEVEN.digest)
    assert other != SEVEN
    assert len({SEVEN.digest, other.digest, SEVEN.untied().digest}) == 3
    assert pickle.loads(pickle.dumps(SEVEN)) == SEVEN
    with pytest.raises(AttributeError):
        SEVEN.num_blocks = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "values",
    [
        ("llama", 4, (1,), 1),
        ("zamba2", 4, (), 0),
        ("zamba2", 4, (1, 3), 0),
        ("zamba2", 4, (1, 3), 3),
        ("zamba2", 4, (3, 1), 1),
        ("zamba2", 4, (1, 1), 1),
        ("zamba2", 4, (1, 4), 1),
        ("zamba2", 4, (-1, 1), 1),
    ],
)
def test_impossible_maps(values: Any) -> None:
    with pytest.raises(ConfigError):
        SharingMap(*values)


@pytest.mark.parametrize("block", [-1, 2])
def test_no_such_block(block: int) -> None:
    for ask in (SEVEN.layers_of, SEVEN.canonical_layer, SEVEN.adapters_of, SEVEN.shared_suffixes):
        with pytest.raises(ValueError, match="there is no block"):
            ask(block)


@st.composite
def maps(draw: st.DrawFn) -> SharingMap:
    layers = draw(st.integers(1, 14))
    hybrid = draw(st.sets(st.integers(0, layers - 1), min_size=1))
    if draw(st.booleans()):
        return SharingMap("zamba", layers, tuple(sorted(hybrid)), 1, linear_bias=draw(st.booleans()))
    blocks = draw(st.integers(1, len(hybrid)))
    flags = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    return SharingMap("zamba2", layers, tuple(sorted(hybrid)), blocks, *flags)


@settings(deadline=None)
@given(sharing=maps(), prefix=st.sampled_from(["model.", "", "base_model.model.model."]))
def test_hub_and_expanded_hold_the_same_tensors(sharing: SharingMap, prefix: str) -> None:
    hub, expanded = sharing.hub_keys(prefix=prefix), sharing.expanded_keys(prefix=prefix)
    assert len(set(hub)) == len(hub)
    assert Counter(expanded) == Counter(alias for key in hub for alias in sharing.aliases(key))
    assert {sharing.canonical_key(key) for key in expanded} == set(hub)
    ties = {alias: key for alias, key in sharing.tied_keys(prefix=prefix).items() if "lm_head" not in alias}
    assert ties == {key: sharing.canonical_key(key) for key in set(expanded) - set(hub)}
    assert set(sharing.shared_keys(prefix=prefix)) == {key for key in hub if sharing.parse(key) is not None}


@settings(deadline=None)
@given(sharing=maps(), data=st.data())
def test_laws_of_a_key(sharing: SharingMap, data: st.DataObject) -> None:
    block = data.draw(st.integers(0, sharing.num_blocks - 1))
    suffix = data.draw(st.sampled_from(sharing.shared_suffixes(block)))
    layer = data.draw(st.sampled_from(sharing.hybrid_layers))
    ending = data.draw(st.sampled_from(["", ".absmax", ".quant_state.bitsandbytes__nf4"]))
    key = f"model.layers.{layer}.{sharing.stem}.{suffix}{ending}"
    canonical, aliases = sharing.canonical_key(key), sharing.aliases(key)
    assert sharing.canonical_key(canonical) == canonical == aliases[0]
    if "_adapter_list." in suffix:
        assert sharing.layer_of(canonical) == sharing.canonical_layer(block)
    assert sharing.is_misplaced(key) == (key not in aliases)
    assert not any(sharing.is_misplaced(alias) for alias in aliases)
    assert all(sharing.aliases(alias) == aliases for alias in aliases)
    assert all(sharing.at_layer(key, sharing.layer_of(alias) or 0) == alias for alias in aliases)


@settings(deadline=None)
@given(sharing=maps())
def test_every_position_has_one_block_and_one_adapter(sharing: SharingMap) -> None:
    blocks = range(sharing.num_blocks)
    owners = Counter(adapter for block in blocks for adapter in sharing.adapters_of(block))
    adapters = sharing.positions if sharing.model_type == "zamba2" else ()
    assert owners == Counter(position.index for position in adapters)
    assert sorted(layer for block in blocks for layer in sharing.layers_of(block)) == list(sharing.hybrid_layers)
    for position in sharing.positions:
        assert position.layer in sharing.layers_of(position.block)
        assert position.canonical_layer == sharing.canonical_layer(position.block) <= position.layer
        if sharing.model_type == "zamba2":
            assert position.index in sharing.adapters_of(position.block)


SMALL = {
    "hidden_size": 32,
    "vocab_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_mamba_heads": 2,
    "mamba_d_state": 8,
    "adapter_rank": 4,
    "intermediate_size": 32,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    **{name: config(*shape) for name, shape in {**PUBLISHED, **UNPUBLISHED}.items()},
    "linear bias": config(4, (1, 3), 1, True, add_bias_linear=True, use_conv_bias=False),
    "untied embeddings": config(4, (1, 3), 2, False, tie_word_embeddings=False),
    "zamba": zamba(10),
    "zamba, biases the other way": zamba(10, mamba_conv_bias=False, mamba_proj_bias=True),
}


def build(settings: dict[str, Any]) -> Any:
    """A model on the meta device. Skips without transformers and in releases that build blocks wrongly."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        pytest.skip("torch and transformers are not installed")
    import torch
    import transformers

    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if (5, 0) <= release < (5, 17) and settings["model_type"] == "zamba2":
        pytest.skip(f"transformers {transformers.__version__} does not build the shared blocks right by itself")
    known = {key: value for key, value in settings.items() if key != "model_type"}
    kind = transformers.Zamba2Config if settings["model_type"] == "zamba2" else transformers.ZambaConfig
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(kind(**{**SMALL, **known}))


@pytest.mark.parametrize("name", MODELS)
def test_keys_are_those_of_the_model(name: str) -> None:
    model = build(MODELS[name])
    sharing = SharingMap.from_config(model.config)
    assert sharing == SharingMap.from_config(MODELS[name])
    stored = set(model.state_dict()) - ({"lm_head.weight"} if sharing.tied_embeddings else set())
    assert stored == set(sharing.expanded_keys())
    assert set(model.model.state_dict()) == set(sharing.expanded_keys(prefix=""))


@pytest.mark.parametrize("name", MODELS)
def test_names_of_one_parameter_are_its_aliases(name: str) -> None:
    model = build(MODELS[name])
    if isinstance(getattr(model, "_tied_weights_keys", None), dict):
        model.tie_weights()  # from 5.0 on, sharing is by tied parameters
    sharing = SharingMap.from_config(model.config)
    names: dict[int, set[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(key)
    expected = [set(sharing.aliases(key)) for key in sharing.hub_keys()]
    for group in expected:
        if sharing.tied_embeddings and "model.embed_tokens.weight" in group:
            group.add("lm_head.weight")
    assert sorted(map(sorted, names.values())) == sorted(map(sorted, expected))
