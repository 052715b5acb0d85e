"""Where SLERP is given no t the base's weight stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.merges import assert_merged, read, run, slerp
from support.others import write_model
from support.synthetic import make_config, make_state, write_checkpoint


def words_of(models: list[Path], **more: Any) -> dict[str, Any]:
    listed = [{"model": str(model)} for model in models]
    return {"models": listed, "merge_method": "slerp", "base_model": str(models[0]), **more}


def test_a_tensor_no_filter_matches_keeps_the_base(mended: bool, tmp_path: Path) -> None:
    models = [write_model(tmp_path / str(seed), "llama", seed) for seed in (0, 1)]
    found = run(words_of(models, parameters={"t": [{"filter": "mlp", "value": 0.3}]}), tmp_path / "out")
    a, b = map(read, models)
    wanted = {key: slerp(0.3, a[key], b[key]) if "mlp" in key else a[key].double() for key in a}
    assert_merged(found, wanted)
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])


def test_no_t_at_all_is_the_base(mended: bool, tmp_path: Path) -> None:
    models = [write_model(tmp_path / str(seed), "llama", seed) for seed in (0, 1)]
    found, base = run(words_of(models), tmp_path / "out"), read(models[0])
    assert found.keys() == base.keys()
    assert all(torch.equal(found[key], base[key]) for key in base)


def test_of_a_shared_block_too(mended: bool, tmp_path: Path) -> None:
    config = make_config("7B")
    states = [make_state(config, seed) for seed in (0, 1)]
    models = [write_checkpoint(tmp_path / str(seed), state, config) for seed, state in enumerate(states)]
    found = run(words_of(models, parameters={"t": [{"filter": "self_attn", "value": [0.0, 1.0]}]}), tmp_path / "out")
    assert found.keys() == states[0].keys()
    merged = {key for key in found if not torch.equal(found[key], states[0][key])}
    assert merged == {key for key in found if "self_attn" in key}


def test_shapes_that_differ_where_nothing_is_merged(mended: bool, tmp_path: Path) -> None:
    models = [write_model(tmp_path / str(seed), "llama", seed, vocab_size=64 + seed) for seed in (0, 1)]
    found = run(words_of(models, parameters={"t": [{"filter": "self_attn", "value": 0.3}]}), tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], read(models[0])["lm_head.weight"])


@pytest.mark.parametrize("single", [0, 1], ids=["base", "other"])
def test_a_slice_of_one_model(mended: bool, tmp_path: Path, single: int) -> None:
    """Also as the first slice, when there are more weights than sources after the last layer."""
    models = [write_model(tmp_path / str(seed), "llama", seed) for seed in (0, 1)]
    both = [{"model": str(model), "layer_range": [1, 3]} for model in models]
    slices = [{"sources": [{"model": str(models[single]), "layer_range": [0, 1]}]}, {"sources": both}]
    words = {"slices": slices, "merge_method": "slerp", "base_model": str(models[0]), "parameters": {"t": 0.3}}
    found = run(words, tmp_path / "out")
    a, b = map(read, models)
    alone = read(models[single])
    first = ("model.embed_tokens", "model.layers.0.")
    wanted = {key: alone[key].double() if key.startswith(first) else slerp(0.3, a[key], b[key]) for key in a}
    assert_merged(found, wanted)


def test_other_methods_still_need_their_parameters(either: bool, tmp_path: Path) -> None:
    models = [write_model(tmp_path / str(seed), "llama", seed) for seed in (0, 1)]
    for method in ("nearswap", "linear"):
        with pytest.raises(RuntimeError, match="Missing required parameter"):
            run(words_of(models, merge_method=method), tmp_path / method)
    with pytest.raises(ValueError, match="input"):
        run(words_of(models[:1], merge_method="nearswap", parameters={"t": 0.1}), tmp_path / "single")
