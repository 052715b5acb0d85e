"""A checkpoint that was saved from within a wrapper is loaded as what it is, or refused by the names of its tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.helpers import assert_close, lay_out, load, logits
from conformance.helpers import case as make_case
from support import synthetic

pytestmark = pytest.mark.ours
LAYOUTS = ("hub", "expanded", "later-layer", "split")
WRAPPERS = ("", "module.", "_orig_mod.", "base_model.model.", "model.", "backbone.", "_fsdp_wrapped_module.")
FOREIGN = ("student.", "ema.model.", "net.0.")


def inside(key: str, wrapper: str) -> str:
    """As torch.compile, FSDP and activation checkpointing of the layers name them."""
    return re.sub(r"(layers\.\d+\.)", rf"\1{wrapper}", key, count=1)


def renamed(state: synthetic.State, how: str) -> synthetic.State:
    match how:
        case "bare":  # a backbone of its own
            return {key.removeprefix("model."): tensor for key, tensor in state.items()}
        case "half":  # every other tensor, as a merge of two dumps has them
            return {("module." if n % 2 else "") + key: tensor for n, (key, tensor) in enumerate(state.items())}
        case "half bare":
            return {key if n % 2 else key.removeprefix("model."): t for n, (key, t) in enumerate(state.items())}
        case "base layers":
            return {re.sub(r"(in_proj|q_proj)\.weight", r"\1.base_layer.weight", k): t for k, t in state.items()}
        case "compiled layers" | "checkpointed layers":
            wrapper = "_orig_mod." if how == "compiled layers" else "_checkpoint_wrapped_module."
            return {inside(key, wrapper): tensor for key, tensor in state.items()}
    return {how + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoModel"])
@pytest.mark.parametrize(
    "how",
    [
        *("module.", "_orig_mod.", "base_model.model.", "model.", "_orig_mod.module."),
        *("bare", "half", "half bare", "base layers", "compiled layers", "checkpointed layers"),
    ],
)
def test_wrappers(how: str, auto: str, tmp_path: Path) -> None:
    case = make_case("7B")
    state = renamed(lay_out(case.state, case.config, "later-layer"), how)
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config), auto)
    if auto == "AutoModel":
        wanted = load(synthetic.write_checkpoint(tmp_path / "right", case.state, case.config), auto)
        with torch.no_grad():
            assert torch.equal(model(case.ids)[0], wanted(case.ids)[0])
    else:
        assert_close(logits(model, case.ids), case.logits)


@given(
    pattern=st.sampled_from(["2.7B", "7B", synthetic.ZAMBA1]),
    layout=st.sampled_from(LAYOUTS),
    prefixes=st.lists(st.lists(st.sampled_from(WRAPPERS + FOREIGN), max_size=3).map("".join), min_size=1, max_size=2),
    bare=st.booleans(),
    sharded=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_saved_logits_or_an_error_that_names_tensors(
    pattern: str, layout: str, prefixes: list[str], bare: bool, sharded: bool
) -> None:
    from zamba_compat.errors import CheckpointError

    case = make_case(pattern)
    state = lay_out(case.state, case.config, layout)
    names = [key.removeprefix("model.") if bare else key for key in state]
    state = {
        prefixes[n % len(prefixes)] + name: t for n, (name, t) in enumerate(zip(names, state.values(), strict=True))
    }
    with TemporaryDirectory() as directory:
        size = 200_000 if sharded else None
        synthetic.write_checkpoint(Path(directory), state, case.config, max_shard_size=size)
        try:
            model = load(Path(directory))
        except CheckpointError as error:
            assert any(word in prefix for prefix in prefixes for word in FOREIGN), error
            assert any(name in str(error) for name in state), error
        else:
            assert_close(logits(model, case.ids), case.logits, 1e-4)


def test_two_tensors_for_one_parameter(tmp_path: Path) -> None:
    case = make_case("7B")
    key = "model.layers.0.mamba.D"
    equal = {**case.state, f"module.{key}": case.state[key].clone()}
    model = load(synthetic.write_checkpoint(tmp_path / "equal", equal, case.config))
    assert_close(logits(model, case.ids), case.logits)
    other = {**case.state, f"module.{key}": case.state[key] + 1}
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mamba\.D', 'module\.model.*are different tensors"):
        load(synthetic.write_checkpoint(tmp_path / "other", other, case.config))


def test_adapters_that_are_not_merged(tmp_path: Path) -> None:
    case = make_case("7B")
    lora = "base_model.model.model.layers.0.mamba.in_proj.lora_A.default.weight"
    both = {**renamed(case.state, "base_model.model."), lora: torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"in_proj\.lora_A.*merge_and_unload"):
        load(synthetic.write_checkpoint(tmp_path / "both", both, case.config))
    with pytest.raises(ValueError, match=r"adapter of PEFT.*merge_and_unload"):
        load(synthetic.write_checkpoint(tmp_path / "alone", {lora: torch.ones(2, 2)}, case.config))


def test_another_models_tensors(tmp_path: Path) -> None:
    case = make_case("7B")
    other = {f"encoder.block.{n}.w": torch.ones(2) for n in range(3)}
    with pytest.raises(ValueError, match=r"encoder\.block\.0\.w"):
        load(synthetic.write_checkpoint(tmp_path / "model", other, case.config))


def test_an_empty_state_dict_asks_for_an_initialised_model(tmp_path: Path) -> None:
    from transformers import AutoConfig, Zamba2ForCausalLM

    case = make_case("7B")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    config = AutoConfig.from_pretrained(tmp_path)
    model = Zamba2ForCausalLM.from_pretrained(None, config=config, state_dict={})
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.lm_head.weight.std() > 0
    if not transformers.__version__.startswith("4.51."):  # which leaves norms, A_log and D as the memory was
        assert torch.isfinite(logits(model.eval(), case.ids)).all()


@pytest.mark.parametrize("places", ["cpu", "disk"])
def test_placed(places: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    case = make_case("7B")
    state = renamed(lay_out(case.state, case.config, "expanded"), "module.")
    directory = synthetic.write_checkpoint(tmp_path / "model", state, case.config)
    layers = {f"model.layers.{n}": places if n > 3 else "cpu" for n in range(case.config["num_hidden_layers"])}
    rest = dict.fromkeys(("model.embed_tokens", "lm_head", "model.final_layernorm", "model.rotary_emb"), "cpu")
    model = load(directory, device_map={**layers, **rest}, offload_folder=str(tmp_path / "offload"))
    assert_close(logits(model, case.ids), case.logits)


def test_the_folder_of_an_adapter(tmp_path: Path) -> None:
    """from_pretrained loads the model that it adapts, and then the adapter into it."""
    peft = pytest.importorskip("peft")
    case = make_case("7B")
    base = load(synthetic.write_checkpoint(tmp_path / "base", case.state, case.config))
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["in_proj"], init_lora_weights=False))
    wanted = logits(model.eval(), case.ids)
    model.save_pretrained(tmp_path / "lora")
    assert torch.equal(logits(load(tmp_path / "lora"), case.ids), wanted)
    again = load(tmp_path / "base")
    again.load_adapter(tmp_path / "lora")
    assert torch.equal(logits(again, case.ids), wanted)


@pytest.mark.parametrize("how", ["module.", "base_model.model.", "half", "compiled layers"])
def test_commands(how: str, tmp_path: Path) -> None:
    from zamba_compat.operations.convert import convert
    from zamba_compat.operations.inspect import inspect

    case = make_case("7B")
    state = renamed(lay_out(case.state, case.config, "expanded"), how)
    source = synthetic.write_checkpoint(tmp_path / "source", state, case.config)
    found = inspect(source).a
    assert (found.layout, found.faults, found.missing, found.extra) == ("expanded", (), (), ())
    convert(source, tmp_path / "converted")
    assert_close(logits(load(tmp_path / "converted"), case.ids), case.logits)


def test_commands_refuse_by_name(tmp_path: Path) -> None:
    from zamba_compat.operations.convert import convert
    from zamba_compat.operations.inspect import inspect

    case = make_case("7B")
    source = synthetic.write_checkpoint(tmp_path / "source", renamed(case.state, "student."), case.config)
    with pytest.raises(ValueError, match=r"student\.model\.embed_tokens"):
        convert(source, tmp_path / "converted")
    assert any("student.model.embed_tokens" in fault for fault in inspect(source).a.faults)


def test_the_callers_own_mapping(tmp_path: Path) -> None:
    import inspect

    from transformers import PreTrainedModel

    if "key_mapping" not in inspect.getsource(PreTrainedModel.from_pretrained):
        pytest.skip("this release has no key_mapping")
    case = make_case("7B")
    directory = synthetic.write_checkpoint(tmp_path / "model", renamed(case.state, "student."), case.config)
    assert_close(logits(load(directory, key_mapping={r"^student\.": ""}), case.ids), case.logits)
