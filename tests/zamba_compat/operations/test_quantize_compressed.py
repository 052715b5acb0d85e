"""quantize --method w4a16, w8a16, fp8: what is written, and what transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file

from support import synthetic
from support.compressed import dequantized_state
from support.synthetic import Config, State
from zamba_compat import SharingMap
from zamba_compat.errors import CheckpointError, UnsupportedReleaseError
from zamba_compat.layout.quant_state_names import base_of, is_weight
from zamba_compat.operations.convert import Options, convert

pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

WAYS: dict[str, dict[str, Any]] = {
    "w4a16": {"quantize": "w4a16", "group_size": 8},
    "w4a16 asymmetric": {"quantize": "w4a16", "group_size": 8, "asymmetric": True},
    "w4a16 rows": {"quantize": "w4a16", "group_size": -1},
    "w8a16": {"quantize": "w8a16", "group_size": 8},
    "w8a16 asymmetric, in_proj kept": {"quantize": "w8a16", "group_size": 8, "asymmetric": True, "ignore": ["in_proj"]},
    "w4a16, shared kept": {"quantize": "w4a16", "group_size": 8, "keep_shared_16bit": True},
    "fp8": {"quantize": "fp8"},
}
CONFIG = synthetic.make_config("7B")
STATE = synthetic.make_state(CONFIG, dtype=torch.bfloat16)


def read(directory: Path) -> State:
    return {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}


def read_config(directory: Path) -> Config:
    config: Config = json.loads((directory / "config.json").read_text())
    return config


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.0"), reason="shared blocks once, from 5.0 on")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", ["7B", "1.2B"])
def test_transformers_computes_with_the_quantized_weights(pattern: str, way: str, tmp_path: Path) -> None:
    if pattern == "1.2B" and way not in ("w4a16", "fp8"):
        pytest.skip("one method per format is enough")
    # The library unpacks no zero points of 8 rows or fewer.
    case = synthetic.case(pattern, time_step_min=1e-9, adapter_rank=16)
    synthetic.write_checkpoint(tmp_path / "hub", case.state, case.config)
    convert(tmp_path / "hub", tmp_path / "made", Options(**WAYS[way]))
    if way == "fp8":  # activations are rounded too: taken off, so that logits can be compared
        config = read_config(tmp_path / "made")
        config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
        (tmp_path / "made" / "config.json").write_text(json.dumps(config))
    wanted = synthetic.forward(dequantized_state(read(tmp_path / "made")), case.config, case.ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32).eval()
    with torch.no_grad():
        got = model(case.ids, use_cache=False).logits.double()

    def error(found: torch.Tensor) -> float:
        return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))

    assert error(got) < 1e-4 < error(case.logits)


@pytest.mark.parametrize("way", WAYS)
def test_each_weight_once_from_every_layout(way: str, tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "hub", STATE, CONFIG)
    report = convert(tmp_path / "hub", tmp_path / "made", Options(**WAYS[way]))
    planned = convert(tmp_path / "hub", tmp_path / "not", Options(**WAYS[way], dry_run=True))
    made = read(tmp_path / "made")
    assert report.bytes == planned.bytes == sum(tensor.nbytes for tensor in made.values())
    assert report.tensors == planned.tensors == len(made)
    # The hub layout's weights and no others, each whole or in parts.
    assert sorted(base_of(name) for name in made if is_weight(name)) == sorted(STATE)
    for name, tensor in STATE.items():
        linear = ".layers." in name and tensor.ndim == 2
        kept = ("in_proj" in way and "in_proj" in name) or ("shared" in way and "shared_transformer" in name)
        assert (f"{name.removesuffix('weight')}weight_scale" in made) == (linear and not kept), name
        if not linear or kept:
            assert torch.equal(made[name], tensor)
    synthetic.write_checkpoint(tmp_path / "expanded", synthetic.to_expanded(STATE, CONFIG), CONFIG)
    convert(tmp_path / "expanded", tmp_path / "again", Options(**WAYS[way], max_shard_size="20KB"))
    again = read(tmp_path / "again")
    assert again.keys() == made.keys() and all(torch.equal(again[name], made[name]) for name in made)


def test_card_manifest_and_the_second_time(tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "hub", STATE, CONFIG)
    convert(tmp_path / "hub", tmp_path / "made", Options(**WAYS["w4a16 asymmetric"]))
    card = (tmp_path / "made" / "README.md").read_text()
    assert "quantized to 4-bit integers, a scale per 8 columns, with zero points" in card
    manifest = json.loads((tmp_path / "made" / "zamba_compat_manifest.json").read_text())
    assert manifest["options"]["compressed-tensors"] and manifest["options"]["group_size"] == 8
    with pytest.raises(CheckpointError, match=r"[Qq]uantized"):
        convert(tmp_path / "made", tmp_path / "twice", Options(quantize="w8a16", group_size=8))


def test_a_head_of_its_own_is_ignored(tmp_path: Path) -> None:
    config = {**CONFIG, "num_labels": 3, "tie_word_embeddings": False}
    head = {"lm_head.weight": STATE["model.embed_tokens.weight"] + 1, "score.weight": torch.ones(3, 64).bfloat16()}
    synthetic.write_checkpoint(tmp_path / "hub", STATE | head, config)
    convert(tmp_path / "hub", tmp_path / "made", Options(quantize="fp8"))
    made = read(tmp_path / "made")
    assert all(torch.equal(made[name], tensor) for name, tensor in head.items())
    assert read_config(tmp_path / "made")["quantization_config"]["ignore"] == ["lm_head", "score"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"quantize": "nf4", "group_size": 64}, "are for w4a16 and w8a16"),
        ({"quantize": "fp8", "asymmetric": True}, "are for w4a16 and w8a16"),
        ({"quantize": "nf4", "ignore": ["in_proj"]}, "no list of modules"),
        ({"quantize": "w4a16", "double_quant": True}, "for nf4 and fp4"),
        ({"quantize": "w4a16", "act_order": True}, "Without a text"),
        ({"group_size": 64}, "not to what"),
        ({"quantize": "w4a16", "layout": "expanded"}, "each shared block once"),
        ({"quantize": "w4a16", "group_size": -2}, "no size of groups"),
        ({"quantize": "w4a16", "group_size": 48}, "do not divide"),
    ],
)
def test_refused(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "hub", STATE, CONFIG)
    with pytest.raises(CheckpointError, match=match):
        convert(tmp_path / "hub", tmp_path / "made", Options(**options))
    assert not (tmp_path / "made").exists()


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise UnsupportedReleaseError("compressed-tensors is not installed.")

    monkeypatch.setattr("zamba_compat.checkpoint.resolving.compressed.require_compressed_tensors", missing)
    synthetic.write_checkpoint(tmp_path / "hub", synthetic.to_divergent(STATE, CONFIG), CONFIG)
    for dry_run in (True, False):  # before copies are compared
        with pytest.raises(UnsupportedReleaseError, match="not installed"):
            convert(tmp_path / "hub", tmp_path / "made", Options(quantize="w4a16", dry_run=dry_run))
    assert not (tmp_path / "made").exists()


def test_zamba_v1(tmp_path: Path) -> None:
    config = synthetic.make_config(synthetic.ZAMBA1)
    synthetic.write_checkpoint(tmp_path / "hub", synthetic.make_state(config), config)
    convert(tmp_path / "hub", tmp_path / "made", Options(quantize="w4a16", group_size=-1))
    sharing = SharingMap.from_config(config)
    scales = [name for name in read(tmp_path / "made") if name.endswith("weight_scale")]
    assert len(scales) == len({sharing.canonical_key(name) for name in scales}) > 0
