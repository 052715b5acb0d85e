"""from_pretrained gives the model that the checkpoint describes, however it stores the shared blocks."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from conformance.helpers import (
    LENGTHS,
    Checkpoint,
    assert_close,
    cached_logits,
    distinct_parameters,
    lay_out,
    load,
    logits,
    relative,
    shared_storages,
)
from conformance.helpers import case as make_case
from conformance.mending import LATER_SCANS, SCANS, builds
from support import synthetic

pytestmark = builds()

LAYOUTS = ("hub", "expanded", "later-layer", "split")
CASES = [(p, layout) for p in synthetic.PATTERNS for layout in LAYOUTS if p != "single-use" or layout in LAYOUTS[:2]]


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize(("pattern", "layout"), CASES)
def test_logits_and_sharing(pattern: str, layout: str, checkpoint: Checkpoint) -> None:
    case = make_case(pattern, length=LENGTHS[-1], rope_theta=7000)
    model = load(checkpoint(pattern, layout, rope_theta=7000))

    for length in LENGTHS:  # the model is causal: a prefix has the prefix's logits
        assert_close(logits(model, case.ids[:, :length]), case.logits[:, :length])

    storages = shared_storages(model)
    for suffix, found in storages.items():
        assert len(found) == (1 if "adapter_list" in suffix else case.config["num_mem_blocks"]), suffix
    assert distinct_parameters(model) == sum(t.numel() for t in case.state.values())
    assert sum(p.numel() for p in model.parameters()) == distinct_parameters(model)


@pytest.mark.mended_by(*SCANS, *LATER_SCANS)
@pytest.mark.parametrize("pattern", synthetic.PUBLISHED)
def test_time_steps_are_not_limited(pattern: str, checkpoint: Checkpoint) -> None:
    """time_step_min draws the initial dt_bias; the models were trained without a lower limit of dt."""
    case = make_case(pattern, time_step_min=0.001)
    model = load(checkpoint(pattern, time_step_min=0.001))
    assert_close(logits(model, case.ids), case.logits)


@pytest.mark.skipif(Version(version("transformers")) < Version("5.15"), reason="no cache records its past")
@pytest.mark.mended_by("zamba2-time-step-limit")
def test_time_steps_of_a_cache_that_records_its_past(checkpoint: Checkpoint) -> None:
    """There the release computes, as it does on other devices."""
    case = make_case("7B", time_step_min=0.001)
    model = load(checkpoint("7B", time_step_min=0.001))
    cache = transformers.DynamicCache(config=model.config)
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    assert any(getattr(layer, "record_past", False) for layer in cache.layers)
    with torch.no_grad():
        out = model(case.ids, past_key_values=cache, use_cache=True)
    assert_close(out.logits, case.logits)


@pytest.mark.mended_by(*SCANS, *LATER_SCANS)
def test_a_time_step_limit_is_applied(tmp_path: Path) -> None:
    case = make_case("7B", time_step_limit=(0.002, 0.03))
    assert relative(case.logits, make_case("7B").logits) > 1e-3
    config = {**case.config, "time_step_limit": [0.002, 0.03]}
    model = load(synthetic.write_checkpoint(tmp_path / "model", case.state, config))
    assert_close(logits(model, case.ids), case.logits)


@pytest.mark.mended_by("zamba2-rehydrate")
@pytest.mark.parametrize("pattern", ["2.7B", "7B", "three-blocks"])
def test_adapters_in_another_blocks_slots(pattern: str, tmp_path: Path) -> None:
    case = make_case(pattern)
    state = synthetic.to_partial(case.state, case.config, "wrong-slots")
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config))
    assert_close(logits(model, case.ids), case.logits)


@pytest.mark.parametrize("pattern", ["1.2B", "7B"])
@pytest.mark.parametrize("layout", ["hub", "expanded", "later-layer"])
def test_nothing_missing_nothing_unexpected(pattern: str, layout: str, checkpoint: Checkpoint) -> None:
    _, info = load_with_info(checkpoint(pattern, layout, rope_theta=7000))
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def load_with_info(directory: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize("layout", ["hub", "expanded", "later-layer"])
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_sharded_files(layout: str, format: str, checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    directory = checkpoint("7B", layout, max_shard_size=200_000, format=format)
    assert len(list(directory.glob(f"*.{format}"))) > 2
    assert_close(logits(load(directory), case.ids), case.logits)


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize("layout", ["hub", "expanded", "later-layer"])
def test_bfloat16(layout: str, checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    directory = checkpoint("7B", layout, dtype=torch.bfloat16)
    model = load(directory, torch_dtype="auto")
    assert model.dtype == torch.bfloat16
    wanted = synthetic.forward({n: t.bfloat16() for n, t in case.state.items()}, case.config, case.ids)
    assert_close(logits(load(directory, torch_dtype=torch.float32), case.ids), wanted)
    assert_close(logits(model, case.ids), wanted, 0.05)


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("layout", ["hub", "later-layer"])
def test_other_heads(auto: str, layout: str, checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    model = load(checkpoint("7B", layout), auto)
    base = getattr(model, "model", model)
    with torch.no_grad():
        hidden = base(case.ids, use_cache=False).last_hidden_state
    assert_close(hidden @ case.state["model.embed_tokens.weight"].T, case.logits)


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize("layout", ["hub", "later-layer"])
def test_a_base_models_checkpoint(layout: str, tmp_path: Path) -> None:
    """Without the "model." prefix, as AutoModel.save_pretrained writes it."""
    case = make_case("7B")
    state = {n.removeprefix("model."): t for n, t in lay_out(case.state, case.config, layout).items()}
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config))
    assert_close(logits(model, case.ids), case.logits)


@pytest.mark.mended_by(*SCANS)
@pytest.mark.mended_by("zamba2-tie-map")
def test_untied_word_embeddings_leave_the_blocks_tied(tmp_path: Path) -> None:
    case = make_case("7B")
    head = torch.flip(case.state["model.embed_tokens.weight"], (0,))
    state = {**case.state, "lm_head.weight": head}
    config = {**case.config, "tie_word_embeddings": False}
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, config))
    assert distinct_parameters(model) == sum(t.numel() for t in state.values())
    assert_close(logits(model, case.ids), case.logits.flip(-1))


@pytest.mark.mended_by(*SCANS)
@pytest.mark.mended_by("zamba2-config-reading-4x", "zamba2-config-reading-5x", when=lambda p: p["words"] != "older")
@pytest.mark.parametrize("words", ["older", "newer", "newest"])
def test_config_dialects(words: str, tmp_path: Path) -> None:
    case = make_case("7B", rope_theta=300)
    config = dict(case.config)
    if words != "older":
        kinds = ["linear_attention" if kind == "mamba" else kind for kind in config.pop("layers_block_type")]
        config["layers_block_type" if words == "newer" else "layer_types"] = kinds
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    model = load(synthetic.write_checkpoint(tmp_path / "model", case.state, config))
    assert_close(logits(model, case.ids), case.logits)
    assert_close(cached_logits(model, case.ids), case.logits)  # the cache is made by the same words


@pytest.mark.mended_by("zamba2-config-refused")
def test_a_config_without_shared_blocks(tmp_path: Path) -> None:
    case = make_case("7B")
    directory = synthetic.write_checkpoint(tmp_path / "model", case.state, {**case.config, "num_mem_blocks": 0})
    with pytest.raises(ValueError, match="num_mem_blocks"):
        load(directory)


@pytest.mark.ours
def test_divergent_copies_load_exactly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = make_case("7B")
    divergent = synthetic.to_divergent(case.state, case.config)
    untied, untied_config = synthetic.to_untied(divergent, case.config)
    want = synthetic.forward(untied, untied_config, case.ids)
    assert relative(case.logits, want) > 1e-3

    with caplog.at_level(logging.WARNING, "zamba_compat"):
        model = load(synthetic.write_checkpoint(tmp_path / "model", divergent, case.config))
    assert_close(logits(model, case.ids), want)
    assert model.config.num_mem_blocks == len(case.config["hybrid_layer_ids"])
    assert len([r for r in caplog.records if r.name == "zamba_compat"]) == 1
    assert "convert-checkpoint SRC DST --resolve mean" in caplog.text

    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved"), case.ids), logits(model, case.ids))


@pytest.mark.ours
@pytest.mark.parametrize("choice", ["first", "mean", "error"])
def test_choices_for_divergent_copies(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zamba_compat.errors import DivergentCopiesError

    case = make_case("7B")
    divergent = synthetic.to_divergent(case.state, case.config)
    directory = synthetic.write_checkpoint(tmp_path / "model", divergent, case.config)
    monkeypatch.setenv("ZAMBA_COMPAT_DIVERGENT", choice)
    if choice == "error":
        with pytest.raises(DivergentCopiesError, match="convert-checkpoint SRC DST --resolve mean"):
            load(directory)
        return
    model = load(directory)
    key = "model.layers.2.shared_transformer.self_attn.q_proj.weight"
    first, *others = synthetic.block_uses(case.config)[0]
    layers = [case.config["hybrid_layer_ids"][position] for position in (first, *others)]
    copies = [divergent[key.replace(".2.", f".{layer}.")] for layer in layers]
    want = copies[0] if choice == "first" else torch.stack(copies).double().mean(0).float()
    assert torch.equal(model.state_dict()[key], want)
    assert model.config.num_mem_blocks == case.config["num_mem_blocks"]


@pytest.mark.ours
@pytest.mark.parametrize("layout", ["hub", "expanded", "later-layer"])
def test_no_copy_anywhere_is_an_error(layout: str, tmp_path: Path) -> None:
    from zamba_compat.errors import MissingTensorError

    case = make_case("7B")
    state = synthetic.drop(lay_out(case.state, case.config, layout), "*gate_up_proj_adapter_list.2.1.weight")
    directory = synthetic.write_checkpoint(tmp_path / "model", state, case.config)
    with pytest.raises(MissingTensorError, match=r"adapter_list\.2\.1\.weight \(position 2, layer 5\)"):
        load(directory)


@pytest.mark.ours
def test_a_state_dict_passed_in(checkpoint: Checkpoint) -> None:
    from transformers import AutoConfig, Zamba2ForCausalLM

    case = make_case("7B")
    config = AutoConfig.from_pretrained(checkpoint("7B"))
    state = synthetic.to_partial(case.state, case.config, "later-layer")
    model = Zamba2ForCausalLM.from_pretrained(None, config=config, state_dict=state).eval()
    assert_close(logits(model, case.ids), case.logits)
