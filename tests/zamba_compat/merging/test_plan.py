"""What parents have to agree on, and what is said where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support import synthetic
from support.merges import parents, read, slerp_of, write
from zamba_compat.errors import CheckpointError, ConfigError
from zamba_compat.operations.merge import MergeOptions, merge


def test_other_heads_are_refused(tmp_path: Path) -> None:
    """Their tensors have the same shapes."""
    config, base, other = parents()
    fewer = {"num_attention_heads": 2, "num_key_value_heads": 2}
    first, second = write(tmp_path, config, base, other, changes=({}, fewer))
    with pytest.raises(CheckpointError, match="num_attention_heads 2 instead of"):
        merge(slerp_of(first, second, config["num_hidden_layers"], 0.5), tmp_path / "out")


def test_other_arithmetic_is_said(tmp_path: Path) -> None:
    config, base, other = parents()
    rope: list[dict[str, Any]] = [{"use_mem_rope": True, "rope_theta": theta} for theta in (10000, 50000)]
    first, second = write(tmp_path, config, base, other, changes=rope)
    report = merge(slerp_of(first, second, config["num_hidden_layers"], 0.5), tmp_path / "out")
    (note,) = (warning for warning in report.warnings if "computes as" in warning)
    assert f"rope_theta 50000 instead of 10000; the result computes as {first}" in note and "mem_rope" not in note


def test_integers_are_not_scaled(tmp_path: Path) -> None:
    """A base alone, with half its weight, is a sum of one."""
    config, base, other = parents()
    name = "model.final_layernorm.weight"
    counts = {name: torch.arange(len(base[name])) + 2**40 + 1}
    first, second = write(tmp_path, config, base | counts, other | counts)
    words: dict[str, Any] = {"merge_method": "linear", "parameters": {"normalize": False}}
    words["models"] = [{"model": str(parent), "parameters": {"weight": w}} for parent, w in ((first, 0.5), (second, 0))]
    report = merge(words | {"base_model": str(first)}, tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")[name], counts[name])
    assert any(f"{name} holds no floating-point" in warning for warning in report.warnings)


def test_a_base_that_models_leaves_out_takes_part_in_linear(tmp_path: Path) -> None:
    """As in mergekit 0.1.5, which wants a weight for it, too."""
    config, base, other = parents()
    first, second = write(tmp_path, config, base, other)
    words: dict[str, Any] = {"merge_method": "linear", "base_model": str(first), "parameters": {"normalize": False}}
    words["models"] = [{"model": str(second), "parameters": {"weight": 0.25}}]
    with pytest.raises(ConfigError, match=f"no weight for {first}"):
        merge(words, tmp_path / "out")
    words["parameters"]["weight"] = 0.5
    merge(words, tmp_path / "out")
    for key, tensor in read(tmp_path / "out").items():
        wanted = 0.5 * base[key].double() + 0.25 * other[key].double()
        assert torch.allclose(tensor.double(), wanted, rtol=2**-7, atol=1e-6), key


@pytest.mark.parametrize("base_is_tied", [True, False])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_head_of_ones_own_meets_the_embedding(base_is_tied: bool, quantize: str | None, tmp_path: Path) -> None:
    """A model that ties them has the one for the other."""
    if quantize:
        pytest.importorskip("bitsandbytes")
    config, base, other = parents()
    head = {"lm_head.weight": torch.randn(base["model.embed_tokens.weight"].shape).bfloat16()}
    states = (base, other | head) if base_is_tied else (base | head, other)
    changes: list[dict[str, Any]] = [{}, {"tie_word_embeddings": False}]
    first, second = write(tmp_path, config, *states, changes=changes if base_is_tied else changes[::-1])
    words: dict[str, Any] = {"merge_method": "linear", "base_model": str(first)}
    words["models"] = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (first, second)]
    report = merge(words, tmp_path / "out", MergeOptions(quantize=quantize))
    merged = read(tmp_path / "out")
    embeddings = [state["model.embed_tokens.weight"] for state in states]
    for name, pair in {
        "model.embed_tokens.weight": embeddings,
        "lm_head.weight": [state.get("lm_head.weight", own) for state, own in zip(states, embeddings, strict=True)],
    }.items():
        wanted = (pair[0].double() + pair[1].double()) / 2
        assert torch.allclose(merged[name].double(), wanted, rtol=2**-7, atol=1e-6), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("head of its own" in warning for warning in report.warnings) == base_is_tied


def test_a_head_that_nothing_takes_stays_tied(tmp_path: Path) -> None:
    config, base, other = parents()
    head = {"lm_head.weight": other["model.embed_tokens.weight"] * 2}
    first, second = write(tmp_path, config, base, other | head, changes=({}, {"tie_word_embeddings": False}))
    words = slerp_of(first, second, config["num_hidden_layers"], [{"filter": "mamba", "value": 0.5}])
    report = merge(words, tmp_path / "out")
    assert "lm_head.weight" not in read(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()).get("tie_word_embeddings", True)
    assert not any("head of its own" in warning for warning in report.warnings)


def test_a_stored_copy_of_a_tied_head_is_no_head_of_its_own(tmp_path: Path) -> None:
    """In any architecture: pickled checkpoints often hold one."""
    embeddings = [torch.randn(10, 8) for _ in range(2)]
    words = {"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": True}
    for name, embedding in zip(("first", "second"), embeddings, strict=True):
        state = {"model.embed_tokens.weight": embedding, "model.layers.0.mlp.up_proj.weight": torch.randn(4, 8)}
        more = {"lm_head.weight": embedding.clone()} if name == "second" else {}
        synthetic.write_checkpoint(tmp_path / name, state | more, words)
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    models = [{"model": path, "parameters": {"weight": 0.5}} for path in (first, second)]
    report = merge({"merge_method": "linear", "base_model": first, "models": models}, tmp_path / "out")
    merged = read(tmp_path / "out")
    assert "lm_head.weight" not in merged and not any("head of its own" in warning for warning in report.warnings)
    assert torch.allclose(merged["model.embed_tokens.weight"], sum(embeddings) / 2)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
