"""save_pretrained writes the hub layout, and what is saved loads to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conformance.helpers import Checkpoint, load, logits
from conformance.helpers import case as make_case
from conformance.mending import builds
from support import synthetic

pytestmark = builds()


def stored_names(directory: Path) -> list[str]:
    names: list[str] = []
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            names += handle.keys()
    return sorted(names)


@pytest.mark.mended_by("zamba2-tied-keys")
@pytest.mark.mended_by("zamba2-rehydrate", when=lambda p: p["layout"] == "expanded", since="5.0", fixed="5.4")
@pytest.mark.parametrize("pattern", [p for p in synthetic.PATTERNS if p != "single-use"])
@pytest.mark.parametrize("layout", ["hub", "expanded"])
def test_saved_once_and_bit_equal(pattern: str, layout: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    case = make_case(pattern)
    model = load(checkpoint(pattern, layout))
    model.save_pretrained(tmp_path / "b")
    assert stored_names(tmp_path / "b") == sorted(case.state)
    again = load(tmp_path / "b")
    assert torch.equal(logits(again, case.ids), logits(model, case.ids))


@pytest.mark.mended_by("zamba2-tied-keys")
def test_sharded_save(tmp_path: Path, checkpoint: Checkpoint) -> None:
    case = make_case("7B")
    model = load(checkpoint("7B"))
    model.save_pretrained(tmp_path / "b", max_shard_size="200KB")
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(case.state) == stored_names(tmp_path / "b")
    assert torch.equal(logits(load(tmp_path / "b"), case.ids), logits(model, case.ids))


@pytest.mark.mended_by("zamba2-tied-keys", "zamba2-tie-map")
def test_untied_word_embeddings(tmp_path: Path) -> None:
    case = make_case("7B")
    state = {**case.state, "lm_head.weight": torch.flip(case.state["model.embed_tokens.weight"], (0,))}
    config = {**case.config, "tie_word_embeddings": False}
    model = load(synthetic.write_checkpoint(tmp_path / "a", state, config))
    model.save_pretrained(tmp_path / "b")
    assert stored_names(tmp_path / "b") == sorted(state)
    assert torch.equal(logits(load(tmp_path / "b"), case.ids), logits(model, case.ids))


@pytest.mark.mended_by("zamba2-config-writing")
def test_config_in_words_every_release_reads(tmp_path: Path) -> None:
    case = make_case("7B", rope_theta=300)
    model = load(synthetic.write_checkpoint(tmp_path / "a", case.state, case.config))
    model.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["layers_block_type"] == case.config["layers_block_type"]
    assert config["rope_theta"] == 300
    assert config["torch_dtype"] == "float32"
    assert config["num_mem_blocks"] == 2
    assert config["hybrid_layer_ids"] == case.config["hybrid_layer_ids"]


@pytest.mark.mended_by("zamba2-long-context-config", "zamba2-long-context-4x", "zamba2-long-context-5x")
@pytest.mark.parametrize("loads", [1, 3])
def test_long_context_survives_saving(loads: int, tmp_path: Path) -> None:
    case = make_case("7B", use_long_context=True, length=41)
    directory = synthetic.write_checkpoint(tmp_path / "0", case.state, case.config)
    for step in range(loads):
        model = load(directory)
        directory = tmp_path / str(step + 1)
        model.save_pretrained(directory)
    got = logits(load(directory), case.ids)
    assert torch.linalg.vector_norm(got - case.logits) / torch.linalg.vector_norm(case.logits) < 2e-5
    assert json.loads((directory / "config.json").read_text())["rope_theta"] == case.config["rope_theta"]
