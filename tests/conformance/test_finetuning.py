"""PEFT on top of a Zamba2 model: one adapter per block or per position, in full precision and quantized."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from _bench.footprint import held_bytes
from conformance.helpers import assert_close, distinct_parameters, load, logits, relative
from conformance.quantization import bnb_config, quantized_state
from support import synthetic

if os.environ.get("ZAMBA_COMPAT_TEST_STOCK") == "1":
    pytest.skip("tests this package's own interface, and PEFT takes seconds to import", allow_module_level=True)
pytest.importorskip("bitsandbytes")
try:
    import peft
except ImportError as error:  # absent, or it does not take this transformers release
    pytest.skip(f"no PEFT for this release: {error}", allow_module_level=True)

pytestmark = pytest.mark.ours

TARGETS = ["q_proj", "v_proj", "gate_up_proj"]
POSITIONS, BLOCKS = 5, 2
PAIRS = {"block": BLOCKS * len(TARGETS), "position": POSITIONS * len(TARGETS)}
CONFIG = synthetic.make_config("7B", time_step_min=1e-9)
STATE = synthetic.make_state(CONFIG)
IDS = synthetic.make_ids(CONFIG, 12, rows=2)


Fresh = Callable[..., Any]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Makes a model by method and form (None: as the release builds it). Loaded once, copied for every use."""
    directory = synthetic.write_checkpoint(tmp_path_factory.mktemp("hub"), STATE, CONFIG)
    loaded: dict[Any, Any] = {}

    def make(method: str | None = None, form: str | None = None, **kwargs: Any) -> Any:
        key = (method, *kwargs.items())
        if key not in loaded:
            more = {} if method is None else {"quantization_config": bnb_config(method)}
            loaded[key] = load(directory, torch_dtype=torch.float32, **more, **kwargs)
        model = copy.deepcopy(loaded[key])
        if form is not None:
            change(model, form)
        return model

    return make


def change(model: Any, form: str) -> None:
    import zamba_compat

    (zamba_compat.share_modules if form == "block" else zamba_compat.separate_modules)(model)


def lora(model: Any, **kwargs: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, **{"target_modules": TARGETS, **kwargs}))


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def sharing() -> Any:
    from zamba_compat import SharingMap

    return SharingMap.from_config(CONFIG)


def module_objects(model: Any) -> int:
    stem = "shared_transf" if model.config.model_type == "zamba" else "shared_transformer"
    layers = getattr(model, "model", model).layers
    return len({id(getattr(layer, stem)) for layer in layers if hasattr(layer, stem)})


@pytest.mark.parametrize("method", [None, "nf4", "int8"])
def test_either_form_is_the_same_model(method: str | None, fresh: Fresh, tmp_path: Path) -> None:
    model = fresh(method)
    wanted, keys = logits(model, IDS), list(model.state_dict())
    numbers, size = distinct_parameters(model), held_bytes(model)
    written = sorted(STATE if method is None else quantized_state(STATE, method))
    for step, form in enumerate(["block", "block", "position", "position", "block"]):
        before = dict(model.named_modules(remove_duplicate=False))
        change(model, form)
        assert module_objects(model) == (BLOCKS if form == "block" else POSITIONS)
        if step in (1, 3):  # twice is as once
            after = dict(model.named_modules(remove_duplicate=False))
            assert before.keys() == after.keys() and all(after[name] is module for name, module in before.items())
        assert torch.equal(logits(model, IDS), wanted)
        assert list(model.state_dict()) == keys
        assert (distinct_parameters(model), held_bytes(model)) == (numbers, size)
        if step >= 3:
            model.save_pretrained(tmp_path / form)
            files = (tmp_path / form).glob("*.safetensors")
            assert sorted(name for file in files for name in load_file(file)) == written
    again = load(tmp_path / "position", torch_dtype=torch.float32)
    assert torch.equal(logits(again, IDS), wanted)


def test_zamba(tmp_path: Path) -> None:
    config = synthetic.make_config(synthetic.ZAMBA1)
    ids = synthetic.make_ids(config, 9)
    model = load(synthetic.write_checkpoint(tmp_path / "a", synthetic.make_state(config), config))
    wanted = logits(model, ids)
    positions = len(synthetic.hybrid_layers(config))
    for form, count in (("block", 1), ("position", positions), ("block", 1)):
        change(model, form)
        assert module_objects(model) == count
        assert torch.equal(logits(model, ids), wanted)


def test_attentions_come_once_per_position(fresh: Fresh) -> None:
    def attentions(model: Any) -> Any:
        with torch.no_grad():
            return model(IDS, use_cache=False, output_attentions=True).attentions

    wanted = attentions(fresh(attn_implementation="eager"))
    model = fresh(form="block", attn_implementation="eager")
    for form in ("block", "position", "block"):
        change(model, form)
        found = attentions(model)
        assert len(found) == len(wanted)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("form", "checkpointing"), [("block", False), ("block", True), ("position", True)])
def test_qlora(form: str, checkpointing: bool, fresh: Fresh, tmp_path: Path) -> None:
    model = peft.prepare_model_for_kbit_training(fresh("nf4", form), use_gradient_checkpointing=checkpointing)
    before = logits(model, IDS)
    model = lora(model, task_type="CAUSAL_LM")
    parameters = trained(model)
    assert len(parameters) == 2 * PAIRS[form] and all("lora_" in name for name in parameters)

    model.train()
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]

    model.eval()
    after = logits(model, IDS)
    assert relative(after, before.double()) > 1e-2
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * PAIRS[form]
    again = peft.PeftModel.from_pretrained(
        peft.prepare_model_for_kbit_training(fresh("nf4", form), use_gradient_checkpointing=False), tmp_path
    )
    assert torch.equal(logits(again.eval(), IDS), after)


@pytest.mark.parametrize("method", [None, "nf4"])
def test_gradient_of_a_block_is_the_sum_over_its_positions(method: str | None, fresh: Fresh) -> None:
    def gradients(form: str, start: dict[str, torch.Tensor] | None) -> tuple[Any, dict[str, Any]]:
        model = lora(fresh(method, form), init_lora_weights=False)
        parameters = trained(model)
        assert len(parameters) == 2 * PAIRS[form]
        if start is not None:
            for name, parameter in parameters.items():
                parameter.data.copy_(start[sharing().canonical_key(name)])
        out = model(IDS, labels=IDS, use_cache=False)
        out.loss.backward()
        return out.logits.detach(), parameters

    computed, blocks = gradients("block", None)
    separately, positions = gradients("position", {name: p.detach() for name, p in blocks.items()})
    assert torch.equal(computed, separately)
    for name, parameter in blocks.items():
        uses = [positions[alias].grad.double() for alias in sharing().aliases(name)]
        assert len(uses) > 1 and min(use.norm() for use in uses) > 0
        assert_close(parameter.grad, sum(uses), 1e-5)


@pytest.mark.relies_on("peft-tied-merge", "peft-tied-merge-lora")
@pytest.mark.parametrize(
    ("form", "by"), [("block", "merge_and_unload"), ("position", "merge_and_unload"), ("position", "merge_adapter")]
)
def test_merged(form: str, by: str, fresh: Fresh, tmp_path: Path) -> None:
    plain = fresh(form=form)
    before = logits(plain, IDS)
    model = lora(plain, init_lora_weights=False).eval()
    wanted = logits(model, IDS).double()
    assert relative(before, wanted) > 1e-2
    merged = getattr(model, by)() or model
    assert_close(logits(merged, IDS), wanted, 1e-5)
    if by == "merge_and_unload":
        assert merged.config.num_mem_blocks == (BLOCKS if form == "block" else POSITIONS)
        merged.save_pretrained(tmp_path)
        assert_close(logits(load(tmp_path, torch_dtype=torch.float32), IDS), wanted, 1e-5)


def test_an_adapter_of_one_position_is_merged_there_alone(fresh: Fresh) -> None:
    last = synthetic.hybrid_layers(CONFIG)[-1]
    model = lora(fresh(form="position"), init_lora_weights=False, layers_to_transform=[last]).eval()
    assert len(trained(model)) == 2 * len(TARGETS)
    wanted = logits(model, IDS)
    assert_close(logits(model.merge_and_unload(), IDS), wanted.double(), 1e-5)


@pytest.mark.relies_on("peft-mamba-targets")
@pytest.mark.parametrize("targets", [["conv1d"], ["q_proj", "conv1d"], r".*\.conv1d"])
def test_what_the_kernels_read_is_refused(targets: Any, fresh: Fresh) -> None:
    with pytest.raises(ValueError, match="fused Mamba kernels"):
        lora(fresh(), target_modules=targets)


def test_what_is_called_as_a_module_is_allowed(fresh: Fresh) -> None:
    model = lora(fresh(form="block"), target_modules=["o_proj"])
    assert len(trained(model)) == 2 * BLOCKS
    model = lora(fresh(form="block"), target_modules="all-linear")
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in trained(model)}
    assert {"in_proj", "out_proj", "o_proj", "gate_up_proj", "down_proj", "linear"} <= names


def test_out_proj_is_refused_where_kernels_would_read_its_weight(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.zamba2.modeling_zamba2 import Zamba2MambaMixer

    model = fresh()
    monkeypatch.setattr(Zamba2MambaMixer, "forward", lambda self, *args, **kwargs: None)
    with pytest.raises(ValueError, match="fused Mamba kernels"):
        lora(model, target_modules=["out_proj"])


def test_a_wrapped_model_is_refused(fresh: Fresh) -> None:
    from zamba_compat import ZambaCompatError

    base = fresh(form="position")
    model = lora(base)
    for wrapped in (model, base):
        for form in ("block", "position"):
            with pytest.raises(ZambaCompatError, match="PEFT has wrapped"):
                change(wrapped, form)
    change(model.unload(), "block")
    assert module_objects(base) == BLOCKS


def test_positions_that_are_not_tied_are_not_shared(fresh: Fresh) -> None:
    from zamba_compat import ZambaCompatError

    model = fresh(form="position")
    layer = synthetic.hybrid_layers(CONFIG)[-1]
    projection = model.model.layers[layer].shared_transformer.self_attn.q_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach().clone())
    with pytest.raises(ZambaCompatError, match=rf"layer {layer}: .*self_attn\.q_proj\.weight"):
        change(model, "block")
    assert module_objects(model) == POSITIONS
