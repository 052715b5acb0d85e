"""accelerate called directly: load_checkpoint_and_dispatch and dispatch_model place each shared block once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.helpers import assert_close, lay_out, logits
from conformance.helpers import case as make_case
from support import synthetic

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.ours


def empty(directory: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with accelerate.init_empty_weights():
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))


def places(config: synthetic.Config, disk_from: int) -> dict[str, str]:
    layers = {f"model.layers.{n}": "disk" if n >= disk_from else "cpu" for n in range(config["num_hidden_layers"])}
    return {
        **dict.fromkeys(("model.embed_tokens", "lm_head", "model.final_layernorm", "model.rotary_emb"), "cpu"),
        **layers,
    }


@pytest.mark.parametrize(("layout", "disk_from"), [("hub", 4), ("later-layer", 4), ("expanded", 3), ("hub", 0)])
def test_load_checkpoint_and_dispatch(layout: str, disk_from: int, tmp_path: Path) -> None:
    case = make_case("7B")
    state = lay_out(case.state, case.config, layout)
    directory = synthetic.write_checkpoint(tmp_path / "model", state, case.config, max_shard_size=200_000)
    model = accelerate.load_checkpoint_and_dispatch(
        empty(directory),
        directory,
        device_map=places(case.config, disk_from),
        offload_folder=str(tmp_path / "offload"),
    )
    assert any(parameter.is_meta for parameter in model.parameters())
    assert_close(logits(model.eval(), case.ids), case.logits)


def test_dispatch_model(tmp_path: Path) -> None:
    from conformance.helpers import load

    case = make_case("7B")
    model = load(synthetic.write_checkpoint(tmp_path / "model", case.state, case.config))
    placed = places(case.config, 4)
    placed["model.layers.0"] = "disk"
    model = accelerate.dispatch_model(model, placed, offload_dir=str(tmp_path / "offload"))
    assert any(parameter.is_meta for parameter in model.parameters())
    assert_close(logits(model, case.ids), case.logits)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    case = make_case("7B")
    state = synthetic.drop(case.state, "model.layers.0.mamba.in_proj.weight")
    directory = synthetic.write_checkpoint(tmp_path / "model", state, case.config)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mamba\.in_proj\.weight"):
        accelerate.load_checkpoint_and_dispatch(empty(directory), directory, device_map=places(case.config, 99))


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    wanted = model(torch.ones(1, 4))
    again = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    again = accelerate.load_checkpoint_and_dispatch(
        again, tmp_path, device_map={"0": "cpu", "1": "disk"}, offload_folder=str(tmp_path / "offload")
    )
    torch.testing.assert_close(again(torch.ones(1, 4)), wanted)
