"""DELLA on convolutions, and on what has one element in a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.merges import run
from support.synthetic import make_config, make_state, write_checkpoint


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_a_mamba_model(mended: bool, method: str, tmp_path: Path) -> None:
    config = make_config("1.2B")
    states = [make_state(config, seed) for seed in (0, 1)]
    models = [write_checkpoint(tmp_path / str(seed), state, config) for seed, state in enumerate(states)]
    words = {
        "models": [{"model": str(models[1]), "parameters": {"weight": 1.0, "density": 0.5}}],
        "merge_method": method, "base_model": str(models[0]), "parameters": {"rescale": False},
    }  # fmt: skip
    found = run(words, tmp_path / "out")
    name = next(key for key in found if key.endswith("conv1d.weight"))
    moved = found[name] != states[0][name]
    assert 0.3 < moved.float().mean() < 0.7
    torch.testing.assert_close(found[name][moved], states[1][name][moved], rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("shape", [(4000, 1), (4000, 1, 1)])
def test_rows_of_one(mended: bool, shape: tuple[int, ...]) -> None:
    from mergekit import sparsify

    torch.manual_seed(0)
    found = sparsify.sparsify(torch.ones(shape), 0.3, sparsify.SparsificationMethod.della_magprune, epsilon=0.1)
    assert found.shape == shape and found.mean().item() == pytest.approx(0.3, abs=0.03)


def test_what_was_right_stays(either: bool) -> None:
    from mergekit import sparsify

    torch.manual_seed(0)
    delta = torch.randn(50, 60)
    found = sparsify.sparsify(delta, 0.5, sparsify.SparsificationMethod.della_magprune, epsilon=0.2)
    kept = (found != 0).float()
    assert abs(kept.mean() - 0.5) < 0.03
    assert kept[delta.abs() > delta.abs().median()].mean() > kept[delta.abs() < delta.abs().median()].mean() + 0.1
