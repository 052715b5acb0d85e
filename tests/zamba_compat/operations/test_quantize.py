"""quantize: what from_pretrained and save_pretrained write, without a model. Rows of bad input are in the names."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zamba_compat
from conformance.quantization import KERNEL, METHODS, PLAIN, bnb_config, dequantized_state, has_kernel
from support import synthetic
from support.synthetic import Config, State
from zamba_compat.checkpoint.resolving import quantization
from zamba_compat.errors import CheckpointError, DestinationError, UnsupportedReleaseError
from zamba_compat.operations.convert import Options, convert

pytest.importorskip("bitsandbytes")

CONFIG = synthetic.make_config("7B")
STATE = synthetic.make_state(CONFIG, dtype=torch.bfloat16)
IN_PROJ = "model.layers.0.mamba.in_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
OPTIONS: dict[str, dict[str, Any]] = {
    "nf4": {"quantize": "nf4"},
    "nf4-double": {"quantize": "nf4", "double_quant": True},
    "fp4": {"quantize": "fp4"},
    "int8": {"quantize": "int8"},
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger weights of these models are quantized in several pieces."""
    monkeypatch.setattr(quantization, "CHUNK", 6400)


def read(directory: Path) -> State:
    return {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}


def read_config(directory: Path) -> Config:
    config: Config = json.loads((directory / "config.json").read_text())
    return config


def assert_same(made: State, wanted: State) -> None:
    assert made.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert made[name].dtype == tensor.dtype and torch.equal(made[name], tensor), name


def saved(source: Path, destination: Path, method: str, dtype: torch.dtype, *, shared: bool = True) -> Path:
    """What transformers makes of a checkpoint, with the model built."""
    import transformers

    # The threshold changes nothing that is stored; METHODS has another one than `quantize` writes.
    more: dict[str, Any] = {"llm_int8_threshold": 6.0} if method == "int8" else {"bnb_4bit_compute_dtype": dtype}
    zamba_compat.configure(quantize_shared=shared)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, quantization_config=bnb_config(method, **more), torch_dtype=dtype
        )
    finally:
        zamba_compat.configure(quantize_shared=None)
    model.save_pretrained(destination)
    return destination


def logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(ids, use_cache=False).logits
    return found


# ---- what it makes


CASES = [("7B", method, "bfloat16", True) for method in METHODS]
CASES += [("1.2B", method, "float32", True) for method in METHODS]
CASES += [("7B", "nf4", "float32", False), ("1.2B", "int8", "bfloat16", False)]


@pytest.mark.parametrize(("pattern", "method", "word", "shared"), CASES)
def test_as_from_pretrained_and_save_pretrained(
    pattern: str, method: str, word: str, shared: bool, tmp_path: Path
) -> None:
    config, dtype = synthetic.make_config(pattern), getattr(torch, word)
    state = synthetic.make_state(config, dtype=dtype)
    hub = synthetic.write_checkpoint(tmp_path / "hub", state, config)
    wanted = saved(hub, tmp_path / "wanted", method, dtype, shared=shared)
    options = Options(**OPTIONS[method], keep_shared_16bit=not shared)
    convert(hub, tmp_path / "made", options)
    assert_same(read(tmp_path / "made"), read(wanted))
    words, expected = (read_config(tmp_path / name)["quantization_config"] for name in ("made", "wanted"))
    # Some releases also name the final norm, which is no linear.
    expected["llm_int8_skip_modules"] = [n for n in expected["llm_int8_skip_modules"] if n != "model.final_layernorm"]
    assert words == expected
    assert read_config(tmp_path / "made")["torch_dtype"] == word

    expanded = synthetic.write_checkpoint(tmp_path / "expanded", synthetic.to_expanded(state, config), config)
    convert(expanded, tmp_path / "again", options)
    assert_same(read(tmp_path / "again"), read(wanted))


@pytest.mark.parametrize("method", METHODS)
def test_it_loads_and_computes_with_the_quantized_weights(method: str, tmp_path: Path) -> None:
    case = synthetic.case("7B", time_step_min=1e-9)
    synthetic.write_checkpoint(tmp_path / "hub", case.state, case.config)
    convert(tmp_path / "hub", tmp_path / "made", Options(**OPTIONS[method]))
    if method == "int8":  # every column an outlier: activations are not rounded, so logits can be compared
        config = read_config(tmp_path / "made")
        config["quantization_config"]["llm_int8_threshold"] = 1e-9
        (tmp_path / "made" / "config.json").write_text(json.dumps(config))
    wanted = synthetic.forward(dequantized_state(read(tmp_path / "made")), case.config, case.ids)

    def error(found: torch.Tensor) -> float:
        return float(torch.linalg.vector_norm(found.double() - wanted) / torch.linalg.vector_norm(wanted))

    tolerance = KERNEL if method != "int8" and has_kernel() else PLAIN
    assert error(logits(tmp_path / "made", case.ids)) < tolerance < error(case.logits)


def test_cast_first(tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "a", synthetic.make_state(CONFIG), CONFIG)
    wanted = saved(tmp_path / "a", tmp_path / "wanted", "nf4", torch.bfloat16)
    convert(tmp_path / "a", tmp_path / "made", Options(quantize="nf4", dtype="bfloat16"))
    assert_same(read(tmp_path / "made"), read(wanted))
    config = read_config(tmp_path / "made")
    assert config["quantization_config"]["bnb_4bit_compute_dtype"] == config["torch_dtype"] == "bfloat16"


def test_copies_that_differ_are_tied_first(tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "a", synthetic.to_divergent(STATE, CONFIG), CONFIG)
    convert(tmp_path / "a", tmp_path / "mean", Options(resolve="mean"))
    convert(tmp_path / "mean", tmp_path / "wanted", Options(quantize="nf4"))
    convert(tmp_path / "a", tmp_path / "made", Options(quantize="nf4", resolve="mean"))
    assert_same(read(tmp_path / "made"), read(tmp_path / "wanted"))
    convert(tmp_path / "a", tmp_path / "untied", Options(quantize="nf4", resolve="untie", keep_shared_16bit=True))
    config = read_config(tmp_path / "untied")
    assert config["num_mem_blocks"] == 5 and len(config["quantization_config"]["llm_int8_skip_modules"]) == 2 + 5


def test_zyphra_layouts_are_read(tmp_path: Path) -> None:
    config = synthetic.make_config("7B", intermediate_size=256)  # its 4 x hidden_size
    synthetic.write_checkpoint(tmp_path / "a", synthetic.make_state(config, dtype=torch.bfloat16), config)
    convert(tmp_path / "a", tmp_path / "fork", Options(layout="zyphra-fork"))
    for source in ("a", "fork"):
        convert(tmp_path / source, tmp_path / f"{source}-made", Options(quantize="nf4"))
    assert_same(read(tmp_path / "fork-made"), read(tmp_path / "a-made"))


def test_zamba_v1(tmp_path: Path) -> None:
    config = synthetic.make_config(synthetic.ZAMBA1)
    synthetic.write_checkpoint(tmp_path / "a", synthetic.make_state(config), config)
    wanted = saved(tmp_path / "a", tmp_path / "wanted", "nf4-double", torch.float32)
    convert(tmp_path / "a", tmp_path / "made", Options(quantize="nf4", double_quant=True))
    assert_same(read(tmp_path / "made"), read(wanted))


def test_heads_are_left_as_they_are(tmp_path: Path) -> None:
    config = {**CONFIG, "num_labels": 3, "tie_word_embeddings": False}
    head = {"lm_head.weight": STATE["model.embed_tokens.weight"] + 1, "score.weight": torch.ones(3, 64).bfloat16()}
    synthetic.write_checkpoint(tmp_path / "a", STATE | head, config)
    convert(tmp_path / "a", tmp_path / "made", Options(quantize="int8"))
    made = read(tmp_path / "made")
    assert all(torch.equal(made[name], tensor) for name, tensor in head.items())
    skipped = read_config(tmp_path / "made")["quantization_config"]["llm_int8_skip_modules"]
    assert skipped == ["lm_head", "model.embed_tokens", "score"]


@pytest.mark.parametrize("size", ["20KB", "5GB"])
def test_shards_report_manifest_and_card(size: str, tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "a", STATE, CONFIG)
    options: dict[str, Any] = {"quantize": "nf4", "double_quant": True, "max_shard_size": size}
    shown: list[tuple[str, int]] = []

    class Bar:
        def __init__(self, what: str, total: int) -> None:
            self.what, self.left = what, total

        def update(self, n: int) -> None:
            self.left -= n

        def close(self) -> None:
            shown.append((self.what, self.left))

    planned = convert(tmp_path / "a", tmp_path / "made", Options(**options, dry_run=True))
    assert not (tmp_path / "made").exists()
    report = convert(tmp_path / "a", tmp_path / "made", Options(**options), progress=Bar)
    made = read(tmp_path / "made")
    assert shown == [("quantizing", 0), ("writing", 0)]
    assert report.tensors == planned.tensors == len(made)
    assert report.bytes == sum(tensor.nbytes for tensor in made.values())
    assert planned.bytes == pytest.approx(report.bytes, rel=0.01)
    assert (len(report.shards) > 1) == (size == "20KB")
    manifest = json.loads((tmp_path / "made" / "zamba_compat_manifest.json").read_text())
    assert manifest["tensors"].keys() == made.keys()
    assert manifest["options"]["quantize"] == "nf4" and "bitsandbytes" in manifest["options"]
    assert "quantized to NF4 with double quantization" in (tmp_path / "made" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "made"]
    known = {"README.md", "config.json", "zamba_compat_manifest.json", "model.safetensors.index.json"}
    assert {path.name for path in (tmp_path / "made").iterdir()} - known == set(report.shards)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 5), (7, 64), (50, 321)])
@pytest.mark.parametrize("word", ["F16", "F32"])
def test_what_is_announced(method: str, shape: tuple[int, int], word: str) -> None:
    weight = torch.randn(shape).to(torch.float16 if word == "F16" else torch.float32)
    chosen = quantization.Method(OPTIONS[method]["quantize"], method == "nf4-double")
    made = quantization.quantize(weight, chosen, "w")
    announced = quantization.announce(word, shape, chosen)
    assert announced.keys() == made.keys()
    for end, (dtype, size) in announced.items():
        assert quantization.from_torch(made[end].dtype) == dtype
        if method == "nf4-double" and ".quant_state." in end:
            assert abs(size[0] - made[end].numel()) <= 8
        else:
            assert size == tuple(made[end].shape), end


# ---- what it refuses


def refused(source: Path, error: type[Exception], match: str, **options: Any) -> None:
    top = source.parent
    before = {str(path): path.read_bytes() for path in top.rglob("*") if path.is_file()}
    with pytest.raises(error, match=match):
        convert(source, top / "made", Options(**options))
    assert {str(path): path.read_bytes() for path in top.rglob("*") if path.is_file()} == before
    assert not (top / "made").exists()


@pytest.mark.parametrize("method", ["nf4", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [IN_PROJ, NORM])
def test_row_25_nan_or_infinity(name: str, value: float, method: str, tmp_path: Path) -> None:
    state = STATE | {name: STATE[name].clone()}
    state[name].view(-1)[-1] = value
    synthetic.write_checkpoint(tmp_path / "a", state, CONFIG)
    refused(tmp_path / "a", CheckpointError, name, quantize=method)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_row_40_already_quantized(method: str, tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "a", STATE, CONFIG)
    convert(tmp_path / "a", tmp_path / "b", Options(quantize=method))
    refused(tmp_path / "b", CheckpointError, "quantized already", quantize="nf4")


def test_row_51_room_for_the_file_beside_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_checkpoint(tmp_path / "a", STATE, CONFIG)
    needed = convert(tmp_path / "a", tmp_path / "x", Options(quantize="int8", dry_run=True)).bytes
    usage = SimpleNamespace(free=needed + 10**5)  # enough for the shards and their headers
    monkeypatch.setattr("zamba_compat.checkpoint.writing.staging.shutil.disk_usage", lambda path: usage)
    refused(tmp_path / "a", DestinationError, "are to be written", quantize="int8")
    usage.free = 2 * needed
    convert(tmp_path / "a", tmp_path / "made", Options(quantize="int8"))


def test_row_52_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_checkpoint(tmp_path / "a", STATE, CONFIG)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zamba_compat.operations.quantize.write_all", full)
    refused(tmp_path / "a", DestinationError, "No space left", quantize="nf4")


def test_numbers_beyond_float16_have_no_8_bits(tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "a", STATE | {IN_PROJ: STATE[IN_PROJ] * 1e6}, CONFIG)
    refused(tmp_path / "a", CheckpointError, "beyond float16", quantize="int8")
    convert(tmp_path / "a", tmp_path / "made", Options(quantize="nf4"))


def test_float64_is_refused_without_a_dtype(tmp_path: Path) -> None:
    state = {name: tensor.double() for name, tensor in STATE.items()}
    synthetic.write_checkpoint(tmp_path / "a", state, CONFIG)
    refused(tmp_path / "a", CheckpointError, "--dtype", quantize="nf4")
    convert(tmp_path / "a", tmp_path / "made", Options(quantize="nf4", dtype="bfloat16"))


@pytest.mark.parametrize(
    ("installed", "method", "match"),
    [(None, "nf4", "not installed"), ("0.45.5", "int8", "cannot quantize on a CPU"), ("0.46.1", "fp4", "no FP4")],
)
def test_releases_of_bitsandbytes(
    installed: str | None, method: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "bitsandbytes" and installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name) if name != "bitsandbytes" or installed is None else installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    synthetic.write_checkpoint(tmp_path / "a", synthetic.to_divergent(STATE, CONFIG), CONFIG)
    refused(tmp_path / "a", UnsupportedReleaseError, match, quantize=method)
    refused(tmp_path / "a", UnsupportedReleaseError, match, quantize=method, dry_run=True)


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": "int4"},
        {"double_quant": True},
        {"compute_dtype": "float16"},
        {"keep_shared_16bit": True},
        {"quantize": "int8", "double_quant": True},
        {"quantize": "int8", "compute_dtype": "float16"},
        {"quantize": "nf4", "compute_dtype": "int8"},
        {"quantize": "nf4", "layout": "expanded"},
        {"quantize": "nf4", "layout": "zyphra-native"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        Options(**options)
