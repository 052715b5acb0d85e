"""An incomplete checkpoint is understood as far as its names and config go. (Rows of bad input: test_inspection.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import synthetic
from zamba_compat.checkpoint.layouts.survey import survey
from zamba_compat.checkpoint.reading.lenient import open_as_far
from zamba_compat.operations.convert import Options, convert

CONFIG = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, intermediate_size=64, adapter_rank=2)
STATE = synthetic.make_state(CONFIG)
LOST = "model.layers.0.mamba.D"


@pytest.mark.parametrize("layout", ["zyphra-fork", "zyphra-native"])
def test_zyphras_layouts_with_a_tensor_missing(layout: str, tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path / "hub", STATE, CONFIG)
    directory = tmp_path / layout
    convert(tmp_path / "hub", directory, Options(layout=layout, format="safetensors"))
    stored = load_file(directory / "model.safetensors")
    del stored[next(name for name in stored if name.endswith("layers.0.mamba.D") or name.endswith("layers.0.mixer.D"))]
    save_file(stored | {"odd": torch.ones(2)}, str(directory / "model.safetensors"))
    opened = open_as_far(directory)
    with opened.checkpoint:
        found = survey(opened)
        assert (found.layout, found.missing, found.unknown) == (layout, (LOST,), ("odd",))
        assert len(found.faults.found) == 1 and found.plan is not None
        kept = {name: tensor for name, tensor in STATE.items() if name != LOST}
        assert found.plan.sources.keys() == kept.keys()
        assert all(torch.equal(found.read(name), tensor) for name, tensor in kept.items())
    (directory / "config.json").unlink()
    opened = open_as_far(directory)
    with opened.checkpoint:
        found = survey(opened)
        assert found.layout == layout and found.sharing is None and found.plan is None
        assert found.tensors.keys() == stored.keys() | {"odd"} and len(found.faults.found) == 1


def test_quantized_weights_and_their_parts(tmp_path: Path) -> None:
    name = "model.layers.0.mamba.in_proj.weight"
    weight = torch.full(STATE[name].shape, 127, dtype=torch.int8)
    scale = torch.full(STATE[name].shape[:1], 2.0)
    state = STATE | {name: weight, name.replace("weight", "SCB"): scale}
    opened = open_as_far(synthetic.write_checkpoint(tmp_path / "a", state, CONFIG))
    with opened.checkpoint:
        found = survey(opened)
        assert not found.faults.found and found.parts == {name: {"SCB": name.replace("weight", "SCB")}}
        assert torch.equal(found.read(name), torch.full(weight.shape, 2.0))
        assert found.parameters(name) == weight.numel() and found.nbytes(name) == weight.nbytes + scale.nbytes
        assert found.component(name.replace("weight", "SCB")) == "mamba"
        assert found.same(name, name) and not found.same(name, "model.layers.1.mamba.in_proj.weight")


def test_the_sizes_are_not_known(tmp_path: Path) -> None:
    """The sharing map needs no sizes, so what is missing is known without them."""
    config = {key: value for key, value in CONFIG.items() if key != "num_attention_heads"}
    state = {name: tensor for name, tensor in STATE.items() if name != LOST}
    opened = open_as_far(synthetic.write_checkpoint(tmp_path / "a", state, config))
    found = survey(opened)
    assert found.layout == "hub" and found.missing == (LOST,) and len(found.faults.found) == 1
    assert "num_attention_heads" in found.faults.found[0] and set(found.expected.values()) == {None}
