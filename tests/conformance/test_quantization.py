"""bitsandbytes: each shared linear is quantized once, computes what its weight says, is saved and loaded again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from _bench.footprint import held_bytes
from conformance.helpers import Checkpoint, assert_close, lay_out, load, logits, relative, shared_storages
from conformance.helpers import case as make_case
from conformance.mending import SCANS, builds
from conformance.quantization import (
    METHODS,
    PLAIN,
    assert_computes,
    bnb_config,
    dequantized,
    effective_state,
    has_kernel,
    is_packed,
    is_quantized,
    linears,
    quantized_case,
    quantized_state,
    reference_logits,
    write_quantized,
)
from support import synthetic

pytest.importorskip("bitsandbytes")

pytestmark = [
    *builds(lambda p: p.get("pattern") != synthetic.ZAMBA1),
    pytest.mark.mended_by("bitsandbytes-cpu-refused"),
]
SHARED = pytest.mark.mended_by("shared-skipped-4bit", "shared-skipped-8bit")  # for methods of either kind
PACKED = pytest.mark.mended_by(  # rows that are no multiple of the kernel's, in all models but the 1.2B's
    "bitsandbytes-cpu-packing", when=lambda p: p["method"] != "int8" and has_kernel()
)

LAYOUTS = ("hub", "expanded", "later-layer")
# Every pattern with every layout and every method, and every layout with every method.
CASES = [
    (p, LAYOUTS[(i + j) % 3], m) for i, p in enumerate(synthetic.PUBLISHED) for j, m in enumerate(METHODS)
]  # fmt: skip
CASES += [(p, "hub", ("nf4-double", "int8")[i % 2]) for i, p in enumerate(synthetic.UNPUBLISHED)]
CASES += [("three-blocks", layout, "nf4") for layout in ("expanded", "split")]
PRE_QUANTIZED = [("expanded", m) for m in METHODS]
PRE_QUANTIZED += [(layout, m) for layout in ("hub", "later-layer") for m in ("nf4-double", "int8")]
PLACES = [("auto", "hub", "nf4"), ("auto", "later-layer", "int8")]
PLACES += [("cpu", "hub", "int8"), ("cpu", "later-layer", "nf4")]


def quantize_on_load(directory: Path, method: str, **more: Any) -> Any:
    return load(directory, quantization_config=bnb_config(method, **more), torch_dtype=torch.float32)


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_weights(model: Any, other: Any, state: synthetic.State) -> None:
    mine, theirs = effective_state(model, state), effective_state(other, state)
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.mended_by(*SCANS)
@pytest.mark.mended_by("shared-skipped-4bit", "shared-skipped-8bit", when=lambda p: p["pattern"] != "single-use")
@pytest.mark.relies_on("zamba2-saved-once", "bitsandbytes-cpu-packing", when=lambda p: p["method"] != "int8")
@pytest.mark.relies_on("quant-state-per-module", when=lambda p: p["method"] == "int8")
@pytest.mark.parametrize(("pattern", "layout", "method"), CASES)
def test_quantized_once(pattern: str, layout: str, method: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    case = make_case(pattern, length=41)
    wanted = quantized_case(pattern, method)
    model = quantize_on_load(checkpoint(pattern, layout), method)

    assert all(is_quantized(module) for module in linears(model).values())
    for suffix, found in shared_storages(model).items():
        assert len(found) == (1 if "adapter_list" in suffix else case.config["num_mem_blocks"]), suffix

    model.save_pretrained(tmp_path / "before")
    assert_computes(model, case.ids, reference_logits(pattern, method))
    assert relative(reference_logits(pattern, method), case.logits) > 10 * PLAIN
    model.save_pretrained(tmp_path / "after")

    # What is written is what bitsandbytes makes of each tensor, once; the same in every release.
    for directory in (tmp_path / "before", tmp_path / "after"):
        written = stored(directory)
        assert sorted(written) == sorted(wanted)
        for key, tensor in wanted.items():
            assert torch.equal(written[key], tensor), key

    again = load(tmp_path / "after", torch_dtype=torch.float32)
    floor = sum(tensor.numel() * tensor.element_size() for key, tensor in wanted.items() if "bitsandbytes__" not in key)
    assert held_bytes(again) == pytest.approx(floor, rel=0.01)
    assert torch.equal(logits(again, case.ids), logits(model, case.ids))
    assert_same_weights(again, model, case.state)
    for used in (model, again):
        assert held_bytes(used) == pytest.approx(floor, rel=0.01)


@pytest.mark.relies_on("zamba2-saved-again")
@SHARED
@pytest.mark.parametrize(("layout", "method"), PRE_QUANTIZED)
def test_pre_quantized(method: str, layout: str, tmp_path: Path) -> None:
    case = make_case("7B", length=41)
    state = quantized_state(lay_out(case.state, case.config, layout), method)
    model = load(write_quantized(tmp_path / "a", state, case.config, method), torch_dtype=torch.float32)
    assert all(is_quantized(module) for module in linears(model).values())
    assert_computes(model, case.ids, reference_logits("7B", method))
    model.save_pretrained(tmp_path / "b")
    assert sorted(stored(tmp_path / "b")) == sorted(quantized_case("7B", method))


@SHARED
@pytest.mark.parametrize("method", ["nf4", "nf4-double"])
def test_orphan_quant_states(method: str, tmp_path: Path) -> None:
    """What stock 5.x writes when it is made to quantize the shared blocks."""
    case = make_case("7B", length=41)
    state = quantized_state(case.state, method)
    expanded = quantized_state(synthetic.to_expanded(case.state, case.config), method)
    orphans = {key: tensor for key, tensor in expanded.items() if key not in state and "quant_state" in key}
    assert orphans
    directory = write_quantized(tmp_path / "a", state | orphans, case.config, method, llm_int8_skip_modules=["lm_head"])
    model = load(directory, torch_dtype=torch.float32)
    assert_computes(model, case.ids, reference_logits("7B", method))


@SHARED
@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_shared_blocks_stored_in_16_bits(method: str, tmp_path: Path) -> None:
    """What every stock release writes: nothing in the file but the missing quant states says so."""
    case = make_case("7B")
    state = quantized_state(case.state, method, skip="shared_transformer")
    model = load(write_quantized(tmp_path / "a", state, case.config, method), torch_dtype=torch.float32)
    for _ in range(2):
        kinds = {("shared_transformer" in name, is_quantized(module)) for name, module in linears(model).items()}
        assert kinds == {(True, False), (False, True)}
        effective = effective_state(model, case.state)
        assert_computes(model, case.ids, synthetic.forward(effective, case.config, case.ids))
        model.save_pretrained(tmp_path / "b")
        assert sorted(stored(tmp_path / "b")) == sorted(state)
        model = load(tmp_path / "b", torch_dtype=torch.float32)


@pytest.mark.ours
@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_shared_blocks_kept_in_16_bits(
    method: str, tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZAMBA_COMPAT_QUANTIZE_SHARED", "0")
    case = make_case("7B")
    model = quantize_on_load(checkpoint("7B"), method)
    monkeypatch.delenv("ZAMBA_COMPAT_QUANTIZE_SHARED")
    model.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b", torch_dtype=torch.float32)
    for loaded in (model, again):
        kinds = {("shared_transformer" in name, is_quantized(module)) for name, module in linears(loaded).items()}
        assert kinds == {(True, False), (False, True)}
        effective = effective_state(loaded, case.state)
        assert_computes(loaded, case.ids, synthetic.forward(effective, case.config, case.ids))


@SHARED
@pytest.mark.parametrize("layer", [0, 1])
def test_a_skipped_shared_linear_is_skipped_at_every_position(layer: int, checkpoint: Checkpoint) -> None:
    """Requested under the name of any of its layers. `layer` counts the uses of block 0."""
    case = make_case("7B")
    uses = synthetic.hybrid_layers(case.config)[0::2]
    skip = ["lm_head", f"model.layers.{uses[layer]}.shared_transformer.feed_forward.down_proj", "in_proj"]
    model = quantize_on_load(checkpoint("7B"), "nf4", llm_int8_skip_modules=skip)
    plain = {name for name, module in linears(model).items() if not is_quantized(module)}
    expected = {f"model.layers.{use}.shared_transformer.feed_forward.down_proj" for use in uses}
    assert plain == expected | {name for name in linears(model) if name.endswith("in_proj")}
    effective = effective_state(model, case.state)
    assert_computes(model, case.ids, synthetic.forward(effective, case.config, case.ids))


@pytest.mark.mended_by(*SCANS)
@pytest.mark.mended_by("shared-skipped-4bit", when=lambda p: p["storage"] != "float32")
@PACKED
@pytest.mark.relies_on("packed-weight-cast", "packed-weight-cast-449")
@pytest.mark.parametrize(
    ("storage", "method"),
    [("uint8", "nf4-double"), ("float16", "fp4"), ("bfloat16", "nf4-double"), ("float32", "fp4")],
)
def test_quant_storage(storage: str, method: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    model = quantize_on_load(checkpoint("7B"), method, bnb_4bit_quant_storage=storage)
    for module in linears(model).values():
        assert module.weight.dtype == getattr(torch, storage)
    effective = effective_state(model, case.state)
    assert_computes(model, case.ids, synthetic.forward(effective, case.config, case.ids))
    model.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b", torch_dtype=torch.float32)
    assert_same_weights(again, model, case.state)
    assert torch.equal(logits(again, case.ids), logits(model, case.ids))


@pytest.mark.mended_by(*SCANS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.08), ("float16", 0.02)])
@pytest.mark.parametrize("method", ["nf4-double", "int8"])
@pytest.mark.parametrize("pattern", ["1.2B"])
def test_16_bit_models(
    pattern: str, dtype: str, tolerance: float, method: str, checkpoint: Checkpoint, armed: bool
) -> None:
    case = make_case(pattern)
    state = {key: tensor.to(getattr(torch, dtype)) for key, tensor in case.state.items()}
    directory = checkpoint(pattern, dtype=getattr(torch, dtype))
    more = {"bnb_4bit_compute_dtype": dtype} if method != "int8" else {}
    model = load(directory, quantization_config=bnb_config(method, **more), torch_dtype=getattr(torch, dtype))
    effective = effective_state(model, {key: tensor.float() for key, tensor in state.items()})
    assert_close(logits(model, case.ids), synthetic.forward(effective, case.config, case.ids), tolerance)
    if armed:
        assert not any(is_packed(module) for module in model.modules()), "the loops in C take weights as they are"


@pytest.mark.mended_by("bitsandbytes-storage-cast")
@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_a_cast_leaves_quantized_weights_alone(storage: str, checkpoint: Checkpoint) -> None:
    model = quantize_on_load(checkpoint("7B"), "nf4", bnb_4bit_quant_storage=storage)
    before = {name: dequantized(module) for name, module in linears(model).items() if is_quantized(module)}
    model.model.layers.half()
    assert before and all(torch.equal(dequantized(linears(model)[name]), weight) for name, weight in before.items())


@pytest.mark.ours
@pytest.mark.parametrize("method", ["nf4", "int8"])
@pytest.mark.parametrize("quantized_before", [False, True])
def test_differing_copies_are_kept(method: str, quantized_before: bool, tmp_path: Path) -> None:
    case = make_case("7B")
    state = synthetic.to_divergent(case.state, case.config)
    if quantized_before:
        directory = write_quantized(tmp_path / "a", quantized_state(state, method), case.config, method)
        model = load(directory, torch_dtype=torch.float32)
    else:
        model = quantize_on_load(synthetic.write_checkpoint(tmp_path / "a", state, case.config), method)
    untied, config = synthetic.to_untied(state, case.config)
    effective = effective_state(model, untied)
    assert_computes(model, case.ids, synthetic.forward(effective, config, case.ids))
    model.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b", torch_dtype=torch.float32)
    assert torch.equal(logits(again, case.ids), logits(model, case.ids))


@PACKED
@pytest.mark.parametrize("method", ["nf4-double", "int8"])
def test_a_copy_of_the_model_computes_the_same(method: str, checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    fresh = copy.deepcopy(model := quantize_on_load(checkpoint("7B"), method))
    wanted, held = logits(model, case.ids), held_bytes(model)
    used = copy.deepcopy(model)
    for twin in (fresh, used):
        assert torch.equal(logits(twin, case.ids), wanted)
        assert held_bytes(twin) == held


@PACKED
@pytest.mark.mended_by(*SCANS, when=lambda p: p["method"] == "int8")  # with nf4 the tokens are right by chance
@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_generate_with_and_without_cache(method: str, checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    model = quantize_on_load(checkpoint("7B"), method)
    ids = case.ids[:, :9]
    cached = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=True)
    plain = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False)
    assert cached.shape == (1, 21) and torch.equal(cached, plain)


@pytest.mark.mended_by(*SCANS)
def test_int8_with_rounded_activations(checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    model = quantize_on_load(checkpoint("7B"), "int8", llm_int8_threshold=6.0)
    effective = effective_state(model, case.state)
    assert_close(logits(model, case.ids), synthetic.forward(effective, case.config, case.ids), 0.1)


@pytest.mark.relies_on("zamba-saved-once", "zamba-saved-again")
@SHARED
@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_zamba(method: str, tmp_path: Path) -> None:
    case = make_case(synthetic.ZAMBA1)
    model = quantize_on_load(synthetic.write_checkpoint(tmp_path / "a", case.state, case.config), method)
    shared = {n: m for n, m in linears(model).items() if "shared_transf" in n}
    assert shared and all(is_quantized(module) for module in shared.values())
    for name, module in shared.items():
        first = next(n for n in shared if n.partition("shared_transf")[2] == name.partition("shared_transf")[2])
        assert torch.equal(dequantized(module), dequantized(shared[first]))
    wanted, held = logits(model, case.ids), held_bytes(model)
    model.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b", torch_dtype=torch.float32)
    assert torch.equal(logits(again, case.ids), wanted)
    assert held_bytes(again) == held
    again.save_pretrained(tmp_path / "c")
    assert stored(tmp_path / "b").keys() == stored(tmp_path / "c").keys() == quantized_state(case.state, method).keys()


@SHARED
@pytest.mark.parametrize(("place", "layout", "method"), PLACES)
def test_device_map(place: str, layout: str, method: str, checkpoint: Checkpoint) -> None:
    if place == "auto" and torch.cuda.is_available():
        pytest.skip("auto would take the GPU")
    case = make_case("7B", length=41)
    model = load(
        checkpoint("7B", layout),
        quantization_config=bnb_config(method),
        torch_dtype=torch.float32,
        device_map="auto" if place == "auto" else {"": place},
    )
    assert all(is_quantized(module) for name, module in linears(model).items() if "shared_transformer" in name)
    assert_computes(model, case.ids, reference_logits("7B", method))
    for suffix, found in shared_storages(model).items():
        assert len(found) == (1 if "adapter_list" in suffix else 2), suffix
