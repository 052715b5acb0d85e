"""What is checked after loading and saving in a release that was not tested; each fault is noticed."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zamba_compat
from support import synthetic
from zamba_compat.errors import MissingTensorError, UnverifiedReleaseError
from zamba_compat.runtime import postconditions
from zamba_compat.runtime.postconditions import after_loading, after_saving, computed, faults_of, held
from zamba_compat.settings import configure

pytestmark = pytest.mark.usefixtures("armed")


@pytest.fixture(autouse=True)
def settings_as_they_were() -> Iterator[None]:
    yield
    configure(unverified=None, divergent=None)


@pytest.fixture
def right_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model is judged in tests of its own."""
    monkeypatch.setattr(postconditions, "_judged", {"zamba2": []})


def checkpoint(tmp_path: Path, layout: str = "hub", **overrides: Any) -> Path:
    case = synthetic.case("7B", **overrides)
    change = {
        "hub": lambda state, config: state,
        "expanded": synthetic.to_expanded,
        "divergent": synthetic.to_divergent,
        "partial": lambda state, config: synthetic.to_partial(state, config, "later-layer"),
    }[layout]
    return synthetic.write_checkpoint(tmp_path / layout, change(case.state, case.config), case.config)


def load(directory: Path, **kwargs: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, **kwargs).eval()


def found(model: Any, directory: Path, **kwargs: Any) -> list[postconditions.Fault]:
    return faults_of(model, {"pretrained_model_name_or_path": directory, **kwargs})


@pytest.mark.parametrize("choice", ["keep", "first", "mean"])
@pytest.mark.parametrize("layout", ["hub", "expanded", "divergent", "partial"])
@pytest.mark.usefixtures("right_numbers")
def test_right_models_pass(layout: str, choice: str, tmp_path: Path) -> None:
    configure(divergent=choice)
    directory = checkpoint(tmp_path, layout)
    model = load(directory, dtype=torch.bfloat16)
    assert found(model, directory) == []
    model.save_pretrained(tmp_path / "saved")
    assert held.written(model, tmp_path / "saved", None) == []


@pytest.mark.parametrize("bits", ["nf4", "nf4-nested", "int8"])
@pytest.mark.usefixtures("right_numbers")
def test_right_quantized_models_pass(bits: str, tmp_path: Path) -> None:
    config = quantization(bits)
    directory = checkpoint(tmp_path)
    model = load(directory, quantization_config=config)
    assert found(model, directory, quantization_config=config) == []
    model.save_pretrained(tmp_path / "saved")
    assert held.written(model, tmp_path / "saved", None) == []
    assert found(load(tmp_path / "saved"), tmp_path / "saved") == []


def quantization(bits: str) -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    if bits == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=bits == "nf4-nested"
    )


def block(model: Any, position: int) -> Any:
    layers = [layer for layer in model.model.layers if hasattr(layer, "shared_transformer")]
    return layers[position].shared_transformer


@pytest.mark.usefixtures("right_numbers")
def test_a_block_that_is_held_twice(tmp_path: Path) -> None:
    import copy

    directory = checkpoint(tmp_path)
    model = load(directory)
    layers = [layer for layer in model.model.layers if hasattr(layer, "shared_transformer")]
    layers[-1].shared_transformer = copy.deepcopy(layers[-1].shared_transformer)
    [fault] = found(model, directory)
    assert fault.group == "tying"
    assert "which it shares" in fault.what


@pytest.mark.parametrize("where", ["shared", "mixer", "embedding"])
@pytest.mark.usefixtures("right_numbers")
def test_tensors_that_are_not_the_stored_ones(where: str, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, "partial")
    model = load(directory)
    weights = {
        "shared": [block(model, 0).self_attn.q_proj.weight],
        "mixer": list(model.model.layers[0].mamba.parameters()),  # every fourth of them is looked at
        "embedding": [model.model.embed_tokens.weight],
    }[where]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn_like(weight))
    faults = found(model, directory)
    assert {fault.group for fault in faults} == {"loading"}


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.usefixtures("right_numbers")
def test_a_quantized_tensor_that_is_not_the_stored_one(bits: str, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, "partial")
    config = quantization(bits)
    model = load(directory, quantization_config=config)
    stored = load_file(directory / "model.safetensors")
    name = next(name for name in stored if name.endswith("shared_transformer.self_attn.k_proj.weight"))
    save_file({**stored, name: torch.randn_like(stored[name]) * stored[name].std()}, directory / "model.safetensors")
    faults = found(model, directory, quantization_config=config)
    assert [fault.group for fault in faults] == ["loading"]


@pytest.mark.usefixtures("right_numbers")
def test_a_shared_linear_that_was_left_in_16_bits(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    config = quantization("nf4")
    model = load(directory, quantization_config=config)
    for position in range(4):
        owner = block(model, position).self_attn
        owner.o_proj = nn.Linear(owner.o_proj.in_features, owner.o_proj.out_features, bias=False)
    faults = held.quantized(model, {"quantization_config": config})
    assert faults and faults[0].group == "quantization"
    config.llm_int8_skip_modules = ["o_proj"]
    assert held.quantized(model, {"quantization_config": config}) == []


@pytest.mark.usefixtures("right_numbers")
def test_long_context_without_effect(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, use_long_context=True)
    model = load(directory)
    assert found(model, directory) == []
    frequencies = model.model.rotary_emb.inv_freq
    frequencies.copy_(1 / 10000 ** (torch.arange(len(frequencies)) / len(frequencies)))
    assert [fault.group for fault in found(model, directory)] == ["config"]


@pytest.mark.usefixtures("right_numbers")
def test_a_block_that_is_stored_nowhere(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    model = load(directory)
    stored = load_file(directory / "model.safetensors")
    save_file({k: v for k, v in stored.items() if "self_attn.q_proj" not in k}, directory / "model.safetensors")
    with pytest.raises(MissingTensorError):
        found(model, directory)


def test_this_release_computes_right_and_keeps_the_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert computed.faults() == []
    assert torch.equal(before, torch.get_rng_state())


def test_a_mixer_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.zamba2 import modeling_zamba2

    forward = modeling_zamba2.Zamba2MambaMixer.forward

    def unmasked(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, hidden_states, *args, **{**kwargs, "attention_mask": None})

    monkeypatch.setattr(modeling_zamba2.Zamba2MambaMixer, "forward", unmasked)
    [fault] = computed.faults()
    assert fault.group == "numbers"
    assert "padding between tokens" in fault.what


def test_a_model_that_does_not_tell_its_layers_of_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.zamba2 import modeling_zamba2

    forward = modeling_zamba2.Zamba2MambaDecoderLayer.forward

    def deaf(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(forward).bind(self, *args, **kwargs)
        call.arguments["attention_mask"] = None
        return forward(*call.args, **call.kwargs)

    monkeypatch.setattr(modeling_zamba2.Zamba2MambaDecoderLayer, "forward", deaf)
    [fault] = computed.faults()
    assert fault.group == "numbers" and "padding" in fault.what


def test_another_signature_is_a_fault_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.zamba2 import modeling_zamba2

    monkeypatch.setattr(modeling_zamba2.Zamba2MambaMixer, "forward", lambda self, *, tokens: tokens)
    assert "a small model fails: TypeError" in computed.faults()[0].what


def test_offloaded_weights_that_cannot_be_found(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    directory = checkpoint(tmp_path)
    model = load(directory, device_map={"": "disk"}, offload_folder=str(tmp_path / "offloaded"))
    assert held.placed(model) == []
    loader = model.model.layers[5].shared_transformer.input_layernorm._hf_hook.weights_map.dataset
    loader.all_keys.remove("model.layers.5.shared_transformer.input_layernorm.weight")
    [fault] = held.placed(model)
    assert fault.group == "placement" and "model.layers.5.shared_transformer.input_layernorm.weight" in fault.what


@pytest.mark.parametrize("how", ["copy", "orphan", "lost", "changed"])
@pytest.mark.usefixtures("right_numbers")
def test_what_was_saved_wrong(how: str, tmp_path: Path) -> None:
    model = load(checkpoint(tmp_path))
    model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    stored = load_file(file)
    name = next(name for name in stored if name.endswith("shared_transformer.self_attn.q_proj.weight"))
    other = held.SharingMap.from_config(model.config).aliases(name)[-1]
    if how == "copy":
        stored[other] = stored[name].clone()
    elif how == "orphan":
        stored[f"{other}.quant_state.bitsandbytes__nf4"] = torch.zeros(3, dtype=torch.uint8)
    elif how == "lost":
        del stored[name]
    else:
        stored[name] = stored[name] + 1
    save_file(stored, file)
    assert "saving" in {fault.group for fault in held.written(model, tmp_path / "saved", None)}


@pytest.mark.parametrize("choice", ["error", "warn", "ignore"])
def test_the_choice_of_what_happens(choice: str, monkeypatch: pytest.MonkeyPatch, caplog: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(postconditions, "_judged", {"zamba2": [postconditions.Fault("numbers", "the mixer is 1 off")]})
    configure(unverified=choice)
    directory = checkpoint(tmp_path)
    model = load(directory)
    with caplog.at_level(logging.WARNING, "zamba_compat"):
        if choice == "error":
            said = r"after loading, the mixer is 1 off \(group numbers.*Install"
            with pytest.raises(UnverifiedReleaseError, match=said):
                after_loading(model, (directory,), {})
        else:
            assert after_loading((model, {}), (directory,), {})[0] is model
    assert bool(caplog.records) is (choice == "warn")


def test_saving_elsewhere_than_on_the_main_process_is_not_looked_at(tmp_path: Path) -> None:
    after_saving(load(checkpoint(tmp_path)), (tmp_path / "nothing", False), {})


def test_doctor_checks_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zamba_compat.operations import doctor

    directory = checkpoint(tmp_path)
    assert doctor.checked(str(directory)) == []
    monkeypatch.setattr(computed, "faults", lambda: [postconditions.Fault("numbers", "wrong")])
    monkeypatch.setattr(postconditions, "_judged", {})
    assert doctor.checked(str(directory)) == [f"{directory}: wrong (group numbers)."]
    (said,) = doctor.checked(str(tmp_path / "nothing"))
    assert "nothing" in said


def test_a_group_that_is_switched_off_is_a_fault_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    from zamba_compat.operations import doctor

    try:
        configure(disable="saving")
        report = doctor.report()
        assert not report.ok
        assert any("group saving is off" in fault for fault in report.faults)
        configure(disable=["speed"])
        assert doctor.report().ok
    finally:
        configure(disable=None)
    assert {s.state for s in zamba_compat.status()} <= {"applied", "armed", "not needed"}


def test_reloading_the_package_changes_nothing() -> None:
    import importlib

    before = zamba_compat.registry()
    states = [(s.name, s.state) for s in zamba_compat.status()]
    importlib.reload(zamba_compat)
    assert zamba_compat.registry() is before
    assert [(s.name, s.state) for s in zamba_compat.status()] == states


def test_the_record_knows_every_target() -> None:
    """Else a release that was not tested would find them changed."""
    from zamba_compat.patches import ADAPTERS, VERIFIED

    record = json.loads(Path(VERIFIED).read_text())
    for adapter in ADAPTERS:
        if adapter.group != "release":
            known = record[adapter.library]["fingerprints"]
            assert {*adapter.targets, *adapter.relies} <= set(known), adapter.name
