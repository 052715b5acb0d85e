"""A PreTrainedModel that holds a Zamba backbone under a name of its own saves each block once, and reloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.helpers import case as make_case
from conformance.test_saving import stored_names
from support import synthetic

pytestmark = pytest.mark.ours


def holder(kind: str, name: str) -> Any:
    import transformers

    config_class, inner = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}Model")

    class Scorer(transformers.PreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            setattr(self, name, inner(config))
            self.score = torch.nn.Linear(config.hidden_size, 1)
            self.post_init()

        def forward(self, ids: Any) -> Any:
            return self.score(getattr(self, name)(ids)[0])

    Scorer.config_class = config_class
    return Scorer


@pytest.mark.relies_on("zamba2-tied-keys", when=lambda p: p["kind"] == "Zamba2")
@pytest.mark.relies_on("zamba-tied-keys", when=lambda p: p["kind"] == "Zamba")
@pytest.mark.parametrize("name", ["backbone", "model", "language_model"])
@pytest.mark.parametrize(("kind", "pattern"), [("Zamba2", "7B"), ("Zamba", synthetic.ZAMBA1)])
def test_saves_once_and_reloads(kind: str, pattern: str, name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    case = make_case(pattern)
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    cls = holder(kind, name)
    torch.manual_seed(0)
    model = cls(AutoConfig.from_pretrained(tmp_path)).eval()
    model.save_pretrained(tmp_path / "saved")
    backbone = {key.removeprefix("model.") for key in case.state if key != "lm_head.weight"}
    assert set(stored_names(tmp_path / "saved")) == {f"{name}.{key}" for key in backbone} | {
        "score.weight",
        "score.bias",
    }
    again, info = cls.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    kept, found = model.state_dict(), again.state_dict()
    assert kept.keys() == found.keys()
    assert all(torch.equal(kept[key], found[key]) for key in kept)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(case.ids), model(case.ids), atol=1e-6, rtol=1e-6)
