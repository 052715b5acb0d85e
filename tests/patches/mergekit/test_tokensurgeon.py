"""mergekit-tokensurgeon gives a Zamba2 another model's vocabulary, its head tied to the embedding or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from support.merges import read
from zamba_compat.layout.sharing import SharingMap

TINY = Path(__file__).parents[2] / "fixtures" / "tiny"


@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_of_another(armed: bool, tied: bool, tmp_path: Path) -> None:
    from click.testing import CliRunner
    from mergekit.scripts.tokensurgeon import main
    from safetensors.torch import save_file

    model, donor = tmp_path / "model", tmp_path / "donor"
    shutil.copytree(TINY / "base", model)
    shutil.copytree(TINY / "tuned", donor)
    if not tied:
        config = json.loads((model / "config.json").read_text())
        state = read(model)
        state["lm_head.weight"] = state["model.embed_tokens.weight"] * 2
        for file in model.glob("model*.safetensors*"):
            file.unlink()
        save_file(state, model / "model.safetensors", {"format": "pt"})
        (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    words = [str(model), str(donor), str(tmp_path / "out"), "--approximation-method", "mean"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found, before = read(tmp_path / "out"), read(model)
    assert found.keys() == before.keys() == set(SharingMap.from_config(tmp_path / "out").hub_keys())
    assert ("lm_head.weight" in found) != tied
    for key, tensor in before.items():  # both have one vocabulary, of fewer tokens than the embedding has rows
        torch.testing.assert_close(found[key], tensor[: len(found[key])] if "layers" not in key else tensor)
