"""Names, skip lists and state dicts of quantized models, without a model."""

from __future__ import annotations

import types

import pytest
import torch

import zamba_compat
from zamba_compat.layout.quant_state_names import weight_of
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.runtime.bitsandbytes import once, skip_list, with_skip_list

# Positions 0 to 3 at layers 1, 3, 5, 7; block 0 at 1 and 5, block 1 at 3 and 7.
SHARING = SharingMap("zamba2", 8, (1, 3, 5, 7), 2)
Q = "model.layers.{}.shared_transformer.self_attn.q_proj"
DEFAULT = [
    "lm_head",
    "model.embed_tokens",
    Q.format(1),
    Q.format(5),
    "model.layers.3.shared_transformer.input_layernorm",
]


@pytest.mark.parametrize(
    ("key", "weight"),
    [
        ("a.q_proj.weight.absmax", "a.q_proj.weight"),
        ("a.q_proj.weight.quant_state.bitsandbytes__nf4", "a.q_proj.weight"),
        ("a.q_proj.SCB", "a.q_proj.weight"),
        ("a.q_proj.weight_format", "a.q_proj.weight"),
        ("a.q_proj.weight", None),
        ("a.q_proj.bias", None),
        ("a.weight_norm.scale", None),
    ],
)
def test_the_weight_of_a_quant_state(key: str, weight: str | None) -> None:
    assert weight_of(key) == weight


def test_the_default_list_is_kept_but_for_the_shared_blocks() -> None:
    assert skip_list(SHARING, None, DEFAULT) == ["lm_head", "model.embed_tokens"]


@pytest.mark.parametrize(
    ("requested", "covered"),
    [
        (Q.format(5), {Q.format(1), Q.format(5)}),
        (Q.format(3), {Q.format(3), Q.format(7)}),
        (
            "model.layers.7.shared_transformer",
            {"model.layers.3.shared_transformer", "model.layers.7.shared_transformer"},
        ),
        (
            "model.layers.5",
            {"model.layers.5", "model.layers.1.shared_transformer", "model.layers.5.shared_transformer"},
        ),
        ("model.layers.2", {"model.layers.2"}),
        ("in_proj", {"in_proj"}),
    ],
)
def test_a_requested_shared_module_is_skipped_under_all_its_names(requested: str, covered: set[str]) -> None:
    assert skip_list(SHARING, [requested], DEFAULT) == sorted(covered)


@pytest.mark.parametrize("requested", [None, ["lm_head"]])
def test_shared_blocks_can_be_kept_in_16_bits(requested: list[str] | None) -> None:
    zamba_compat.configure(quantize_shared=False)
    try:
        names = skip_list(SHARING, requested, DEFAULT)
    finally:
        zamba_compat.configure(quantize_shared=None)
    assert {f"model.layers.{layer}.shared_transformer" for layer in (1, 3, 5, 7)} < set(names)
    assert "lm_head" in names


def test_the_users_config_is_left_alone() -> None:
    given = types.SimpleNamespace(llm_int8_skip_modules=None, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = types.SimpleNamespace(config=zamba_config())
    chosen = with_skip_list(given, model, ["lm_head"])  # type: ignore[arg-type]
    assert chosen.llm_int8_skip_modules == ["lm_head"]
    assert given.llm_int8_skip_modules is None


def zamba_config() -> dict[str, object]:
    types_ = ["hybrid" if layer in SHARING.hybrid_layers else "mamba" for layer in range(8)]
    return {"model_type": "zamba2", "num_hidden_layers": 8, "layers_block_type": types_, "num_mem_blocks": 2}


def test_copies_go_with_their_quant_states() -> None:
    weight, other = torch.ones(3), torch.ones(3)
    state = {
        f"{Q.format(1)}.weight": weight,
        f"{Q.format(1)}.weight.absmax": torch.ones(1),
        f"{Q.format(1)}.lora_A.weight": torch.ones(2),
        f"{Q.format(3)}.weight": other,
        f"{Q.format(5)}.weight": weight,
        f"{Q.format(5)}.weight.absmax": torch.ones(1),
        f"{Q.format(5)}.weight.quant_state.bitsandbytes__nf4": torch.ones(1),
        f"{Q.format(5)}.lora_A.weight": torch.ones(2),
        f"{Q.format(7)}.weight": torch.ones(3),
        "model.embed_tokens.weight": weight,
        "lm_head.weight": weight,
    }
    kept = set(once(state, SHARING))
    # What has no canonical counterpart stays, and so do tensors that are equal but not the same.
    assert set(state) - kept == {f"{Q.format(5)}.weight", f"{Q.format(5)}.weight.absmax", "lm_head.weight"}
