"""Zamba (v1): one block, shared at every hybrid layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conformance.helpers import assert_close, distinct_parameters, lay_out, load, logits
from conformance.helpers import case as make_case
from conformance.test_saving import stored_names
from support import synthetic

PUBLISHED_WORDS = pytest.mark.mended_by("zamba-config-reading-newer-words")  # which 5.13 and 5.14 cannot read

# 26 layers: layer 25 starts with the digit of the first hybrid layer, 2.
DEEP = {"num_hidden_layers": 26, "attn_layer_period": 6, "attn_layer_offset": 4}


@PUBLISHED_WORDS
@pytest.mark.mended_by("zamba-rehydrate", when=lambda p: p["layout"] == "expanded", since="5.0", fixed="5.4")
@pytest.mark.parametrize("layout", ["hub", "expanded", "later-layer", "split"])
def test_logits_and_sharing(layout: str, tmp_path: Path) -> None:
    case = make_case(synthetic.ZAMBA1)
    state = lay_out(case.state, case.config, layout)
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config))
    assert_close(logits(model, case.ids), case.logits, 1e-4)
    assert distinct_parameters(model) == sum(t.numel() for t in case.state.values())


@PUBLISHED_WORDS
@pytest.mark.mended_by("zamba-tie-map", fixed="5.1")
def test_a_deep_model_is_tied_throughout(tmp_path: Path) -> None:
    case = make_case(synthetic.ZAMBA1, length=12, **DEEP)
    model = load(synthetic.write_checkpoint(tmp_path / "model", case.state, case.config))
    assert distinct_parameters(model) == sum(t.numel() for t in case.state.values())
    assert_close(logits(model, case.ids), case.logits, 1e-4)


@PUBLISHED_WORDS
@pytest.mark.mended_by("zamba-tied-keys")
def test_saved_once_and_bit_equal(tmp_path: Path) -> None:
    case = make_case(synthetic.ZAMBA1)
    model = load(synthetic.write_checkpoint(tmp_path / "a", case.state, case.config))
    model.save_pretrained(tmp_path / "b")
    assert stored_names(tmp_path / "b") == sorted(case.state)
    assert torch.equal(logits(load(tmp_path / "b"), case.ids), logits(model, case.ids))


@PUBLISHED_WORDS
@pytest.mark.mended_by("zamba-tie-map")
def test_untied_word_embeddings_leave_the_block_tied(tmp_path: Path) -> None:
    case = make_case(synthetic.ZAMBA1)
    state = {**case.state, "lm_head.weight": torch.flip(case.state["model.embed_tokens.weight"], (0,))}
    config = {**case.config, "tie_word_embeddings": False}
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, config))
    assert distinct_parameters(model) == sum(t.numel() for t in state.values())
    assert_close(logits(model, case.ids), case.logits.flip(-1), 1e-4)


@PUBLISHED_WORDS
@pytest.mark.mended_by("zamba-config-writing", since="4.56")  # which writes dtype
def test_config_in_words_every_release_reads(tmp_path: Path) -> None:
    case = make_case(synthetic.ZAMBA1)
    model = load(synthetic.write_checkpoint(tmp_path / "a", case.state, case.config))
    model.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["layers_block_type"] == case.config["layers_block_type"]
    assert config["torch_dtype"] == "float32"


@pytest.mark.mended_by("zamba-config-reading", fixed="5.0")
def test_newer_config_words(tmp_path: Path) -> None:
    case = make_case(synthetic.ZAMBA1)
    words = ["linear_attention" if kind == "mamba" else kind for kind in case.config["layers_block_type"]]
    config = {**case.config, "layers_block_type": words}
    model = load(synthetic.write_checkpoint(tmp_path / "model", case.state, config))
    assert_close(logits(model, case.ids), case.logits, 1e-4)


@pytest.mark.mended_by("zamba-config-reading")
def test_newest_config_words(tmp_path: Path) -> None:
    """The layers are those that the config lists, not those that the defaults would give."""
    case = make_case(synthetic.ZAMBA1)
    config = {**case.config, "attn_layer_period": 3, "attn_layer_offset": 0}
    words = ["linear_attention" if kind == "mamba" else kind for kind in config.pop("layers_block_type")]
    config["layer_types"] = words
    model = load(synthetic.write_checkpoint(tmp_path / "model", case.state, config))
    assert_close(logits(model, case.ids), case.logits, 1e-4)


@pytest.mark.relies_on("zamba-rehydrate")
@pytest.mark.ours
def test_divergent_copies_cannot_be_kept(tmp_path: Path) -> None:
    from zamba_compat.errors import DivergentCopiesError

    case = make_case(synthetic.ZAMBA1)
    divergent = synthetic.to_divergent(case.state, case.config)
    with pytest.raises(DivergentCopiesError, match="first"):
        load(synthetic.write_checkpoint(tmp_path / "model", divergent, case.config))
