"""Every tensor of every layout has one component, and a name that no layout has is none of them."""

from __future__ import annotations

from collections import Counter

import pytest

from support import synthetic
from zamba_compat.checkpoint.layouts.components import COMPONENTS, component_of, kind_of, layers_of
from zamba_compat.checkpoint.layouts.zyphra_fork import stored_name as fork_name
from zamba_compat.checkpoint.layouts.zyphra_native import stored_name as native_name
from zamba_compat.layout.sharing import SharingMap

STEM = "model.layers.2.shared_transformer."


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "embedding"),
        ("score.weight", "embedding"),
        ("embed_tokens.weight", "embedding"),
        ("model.layers.0.mamba.A_log", "mamba"),
        ("model.layers.2.mamba_decoder.mamba.norm.weight", "mamba"),
        ("model.layers.2.mamba_decoder.input_layernorm.weight", "norms"),
        (f"{STEM}self_attn.q_proj.weight", "attention"),
        (f"{STEM}self_attn.linear_q_adapter_list.0.1.weight", "adapters"),
        (f"{STEM}feed_forward.gate_up_proj.weight", "feed_forward"),
        (f"{STEM}feed_forward.gate_up_proj_adapter_list.0.0.weight", "adapters"),
        (f"{STEM}pre_ff_layernorm.weight", "norms"),
        ("model.final_layernorm.weight", "norms"),
        ("model.layers.2.linear.weight", "linear"),
        ("model.layers.2.shared_transf.self_attn.q_proj.weight", "attention"),
        ("something.else", "other"),
    ],
)
def test_component(name: str, component: str) -> None:
    assert component_of(name) == component


@pytest.mark.parametrize("pattern", ["1.2B", "7B"])
def test_zyphras_names_are_in_the_same_components(pattern: str) -> None:
    sharing = SharingMap.from_config(synthetic.make_config(pattern))
    keys = sharing.hub_keys()
    assert set(map(component_of, keys)) == set(COMPONENTS)
    for stored_name in (fork_name, native_name):
        assert [component_of(stored_name(key, sharing)) for key in keys] == [component_of(key) for key in keys]


def test_published_7b() -> None:
    sharing = SharingMap.from_config(synthetic.make_config("7B", full=True))
    counts = Counter(map(component_of, sharing.hub_keys()))
    assert counts.total() == 786
    assert counts == {
        "mamba": 81 * 8,
        "norms": 81 + 2 * 2 + 1,
        "adapters": 13 * 2,
        "linear": 13,
        "attention": 8,
        "feed_forward": 4,
        "embedding": 1,
    }


def test_kind() -> None:
    adapter = f"{STEM}feed_forward.gate_up_proj_adapter_list.4.1.weight"
    assert kind_of("model.layers.2.mamba_decoder.mamba.in_proj.weight") == kind_of("layers.0.mamba.in_proj.weight")
    assert kind_of(adapter) == "shared_transformer.feed_forward.gate_up_proj_adapter_list.1"
    assert kind_of(adapter, slots=True) == "shared_transformer.feed_forward.gate_up_proj_adapter_list.4.1"
    assert kind_of("model.layers.0.input_layernorm.weight") != kind_of(f"{STEM}input_layernorm.weight")
    assert kind_of("model.embed_tokens.weight") == "model.embed_tokens"


def test_layers() -> None:
    sharing = SharingMap.from_config(synthetic.make_config("7B"))  # hybrid layers 2 3 5 7 9, two blocks
    assert layers_of(f"{STEM}self_attn.q_proj.weight", sharing) == (2, 5, 9)
    assert layers_of(f"{STEM}feed_forward.gate_up_proj_adapter_list.4.1.weight", sharing) == (9,)
    assert layers_of(f"{STEM}self_attn.q_proj.weight", None) == (2,)
    assert layers_of("model.layers.8.mamba.D", sharing) == (8,)
    assert layers_of("model.final_layernorm.weight", sharing) == ()
