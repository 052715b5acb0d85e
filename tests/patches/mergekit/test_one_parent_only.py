"""A tensor that one parent lacks is refused; what is optional for a reason goes on working."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zamba_compat
from support.merges import read, run, slerp
from support.others import change, write_model
from zamba_compat.errors import CheckpointError

KNOWN, INFERRED = "granite", "olmo"


def words_of(models: list[Path], **more: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    parameters = {"parameters": {"t": 0.3}}
    return {"models": listed, "merge_method": "slerp", "base_model": str(models[0]), **parameters, **more}


def pair(tmp_path: Path, model_type: str, *overrides: dict[str, Any]) -> list[Path]:
    both = overrides or ({}, {})
    return [write_model(tmp_path / str(seed), model_type, seed, **words) for seed, words in enumerate(both)]


def with_biases(tmp_path: Path, model_type: str, having: int) -> list[Path]:
    return pair(tmp_path, model_type, {"attention_bias": having == 0}, {"attention_bias": having == 1})


def test_what_mergekit_knows(armed: bool) -> None:
    """The first kind of architecture comes from mergekit's files, with optional biases; the second from the models."""
    from mergekit.architecture import NAME_TO_ARCH

    (granite,) = NAME_TO_ARCH["GraniteForCausalLM"]
    weights = granite.modules["default"].architecture.definition.layer_templates.weights
    assert {weight.name for weight in weights if weight.optional} >= {
        "model.layers.${layer_index}.self_attn.q_proj.bias"
    }
    assert "OlmoForCausalLM" not in NAME_TO_ARCH


@pytest.mark.parametrize("method", ["slerp", "task_arithmetic"])
@pytest.mark.parametrize("having", [0, 1], ids=["base", "other"])
@pytest.mark.parametrize("model_type", [KNOWN, INFERRED, "llama"])
def test_refused(mended: bool, tmp_path: Path, model_type: str, having: int, method: str) -> None:
    """Llama's biases are in no list of mergekit's: it leaves them out."""
    models = with_biases(tmp_path, model_type, having)
    message = rf"_proj\.bias: .*/{having} has it and .*/{1 - having} has not.* filter"
    with pytest.raises(CheckpointError, match=message):
        run(words_of(models, merge_method=method), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("model_type", [KNOWN, INFERRED])
def test_not_where_the_base_is_kept(armed: bool, tmp_path: Path, model_type: str) -> None:
    models = with_biases(tmp_path, model_type, 1)
    words = words_of(models, parameters={"t": [{"filter": "mlp", "value": 0.3}]})
    found, base = run(words, tmp_path / "out"), read(models[0])
    assert found.keys() == base.keys()
    assert {key for key in base if not torch.equal(found[key], base[key])} == {key for key in base if "mlp" in key}


@pytest.mark.parametrize("model_type", [KNOWN, "llama", "qwen3", INFERRED])
@pytest.mark.parametrize("method", ["slerp", "linear", "task_arithmetic"])
def test_other_merges_are_as_before(tmp_path: Path, model_type: str, method: str) -> None:
    """Bit for bit, file for file; a parameter with a gradient among them."""
    models = pair(tmp_path, model_type)
    words = words_of(models, merge_method=method, parameters={"t": [0.1, 0.8]})
    outs = []
    for arm in (zamba_compat.install, zamba_compat.uninstall):
        arm()
        try:
            outs.append(tmp_path / arm.__name__)
            run(words, outs[-1])
        finally:
            zamba_compat.install()
    ours, theirs = map(read, outs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (outs[0] / "config.json").read_bytes() == (outs[1] / "config.json").read_bytes()


@pytest.mark.parametrize("storing", [0, 1], ids=["base", "other"])
@pytest.mark.parametrize("model_type", ["llama", INFERRED])
def test_a_tied_head_that_one_parent_stores(armed: bool, tmp_path: Path, model_type: str, storing: int) -> None:
    models = pair(tmp_path, model_type, {"tie_word_embeddings": True}, {"tie_word_embeddings": True})
    head = read(models[storing])["model.embed_tokens.weight"].clone()
    change(models[storing], add={"lm_head.weight": head})
    found = run(words_of(models), tmp_path / "out")
    embedding = found["model.embed_tokens.weight"]
    assert not torch.equal(embedding, read(models[0])["model.embed_tokens.weight"])
    assert torch.equal(found.get("lm_head.weight", embedding), embedding)


def test_a_tied_and_an_untied_head(either: bool, tmp_path: Path) -> None:
    """Names that stand for one another: the embedding of the one is merged with the head of the other."""
    models = pair(tmp_path, "llama", {}, {"tie_word_embeddings": True})
    found = run(words_of(models), tmp_path / "out")
    a, b = map(read, models)
    wanted = slerp(0.3, a["lm_head.weight"], b["model.embed_tokens.weight"])
    assert torch.allclose(found["lm_head.weight"].double(), wanted, atol=1e-5)


def test_buffers_of_old_releases(either: bool, tmp_path: Path) -> None:
    models = pair(tmp_path, "llama")
    change(models[1], add={"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert run(words_of(models), tmp_path / "out").keys() == read(models[0]).keys()


def test_a_required_tensor_is_refused_before_anything_is_written(mended: bool, tmp_path: Path) -> None:
    models = pair(tmp_path, "llama")
    change(models[1], drop="layers.2.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight: .*/0 has it and .*/1 has not"):
        run(words_of(models), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_is_read_once_for_a_parent(armed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names that are not stored as they are, each is looked for among those that transformers converts."""
    from mergekit.architecture import WeightInfo
    from mergekit.common import ModelReference

    from zamba_compat.merging.mergekit.presence import stores

    model = ModelReference.model_validate(str(write_model(tmp_path / "model", "llama", 0)))
    config, read_again = ModelReference.config, []
    monkeypatch.setattr(ModelReference, "config", lambda *args, **kw: read_again.append(args) or config(*args, **kw))
    for number in range(5):
        assert not stores(model, WeightInfo(name=f"model.layers.{number}.nothing"), trust_remote_code=False)
    assert len(read_again) == 1
