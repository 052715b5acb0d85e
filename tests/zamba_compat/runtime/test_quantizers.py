"""Which tensors of a quantized checkpoint are shared, by every quantizer's names; no quantizer has to be installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import synthetic
from support.other_quantizers import FORMATS, quantized
from zamba_compat.errors import MissingTensorError
from zamba_compat.layout.plan import plan
from zamba_compat.layout.quant_state_names import base_of, format_of, holds_values, part_of
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.runtime.bitsandbytes import once
from zamba_compat.runtime.quantizers import modules_to_skip, plain_modules, rename_metadata

CONFIG = synthetic.make_config("7B")
SHARING = SharingMap.from_config(CONFIG)
STATE = synthetic.make_state(CONFIG)


@pytest.mark.parametrize("format", FORMATS)
def test_names(format: str) -> None:
    parts = [part for name in FORMATS[format] if (part := part_of(f"a.q_proj.{name}")) is not None]
    assert format_of(parts) == format
    assert {base_of(f"a.q_proj.{name}") for name in FORMATS[format]} == {"a.q_proj.weight"}
    values = [name for name in FORMATS[format] if holds_values(f"a.q_proj.{name}") or name == "weight"]
    assert len(values) == 1


@given(
    format=st.sampled_from(sorted(FORMATS)),
    layout=st.sampled_from(["hub", "expanded", "later-layer", "split"]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_layout_fills_the_same_names(format: str, layout: str, seed: int) -> None:
    state = quantized(STATE, format)
    moved = {"hub": lambda: state, "expanded": lambda: synthetic.to_expanded(state, CONFIG)}.get(
        layout,
        lambda: synthetic.to_partial(state, CONFIG, layout),  # type: ignore[arg-type]
    )()
    assert sorted(plan(moved, SHARING).sources) == sorted(state)
    values = [name for name in state if SHARING.parse(name) and (holds_values(name) or name.endswith(".weight"))]
    lost = values[seed % len(values)]
    gone = {name: tensor for name, tensor in moved.items() if SHARING.canonical_key(name) != lost}
    with pytest.raises(MissingTensorError, match="no copy of 1 shared"):
        plan(gone, SHARING)


@pytest.mark.parametrize("format", FORMATS)
def test_saved_once(format: str) -> None:
    state = quantized(STATE, format)
    several = {alias: tensor for name, tensor in state.items() for alias in SHARING.aliases(name)}
    assert sorted(once(several, SHARING)) == sorted(state)


def test_what_is_stored_plain_is_not_quantized() -> None:
    block = SHARING.hybrid_layers[0]
    plain = f"model.layers.{block}.shared_transformer.self_attn.q_proj"
    state = quantized(STATE, "GPTQ")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{plain}.")}
    state[f"{plain}.weight"] = torch.zeros(2, 2)
    assert plain_modules(state, SHARING) == sorted(SHARING.aliases(plain))


def test_modules_to_skip() -> None:
    layer, *later = SHARING.layers_of(0)
    shared = f"model.layers.{layer}.shared_transformer.self_attn.q_proj"
    model: Any = Model(CONFIG)
    assert modules_to_skip(model, ["lm_head", shared], None) == ["lm_head"]
    asked = modules_to_skip(model, ["lm_head", shared], [shared])
    assert set(SHARING.aliases(shared)) <= set(asked)
    assert len(later) > 0


class Model:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = SimpleNamespace(to_dict=lambda: dict(config))


def test_the_header_of_torchao_follows_the_names() -> None:
    layer, *_, last = SHARING.layers_of(0)
    name = "model.layers.{}.shared_transformer.self_attn.q_proj.{}"
    quantizer = SimpleNamespace(
        metadata={name.format(last, "weight"): '{"_type": "X"}', "tensor_names": f'["{name.format(last, "weight")}"]'}
    )
    rename_metadata(quantizer, [(name.format(layer, "_weight_qdata"), name.format(last, "_weight_qdata"))])
    assert quantizer.metadata[name.format(layer, "weight")] == '{"_type": "X"}'
    assert name.format(layer, "weight") in quantizer.metadata["tensor_names"]
