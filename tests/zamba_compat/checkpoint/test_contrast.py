"""Sums over tensors: zeros, what is not finite, what cannot be read. (Pairs and layouts: test_inspection.)"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from support import synthetic
from support.synthetic import State
from zamba_compat.checkpoint.layouts.components import COMPONENTS
from zamba_compat.checkpoint.layouts.survey import survey
from zamba_compat.checkpoint.reading.lenient import open_as_far
from zamba_compat.checkpoint.resolving.contrast import Comparison, contrast

CONFIG = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, adapter_rank=2)
STATE = synthetic.make_state(CONFIG)
D = "model.layers.{}.mamba.D"


def compared(tmp_path: Path, a: State, b: State) -> tuple[Comparison, list[str]]:
    surveys = []
    for name, state in (("a", a), ("b", b)):
        surveys.append(survey(open_as_far(synthetic.write_checkpoint(tmp_path / name, state, CONFIG))))
    found = contrast(surveys, [(), ()], COMPONENTS)
    return found, [fault for one in surveys for fault in one.faults.found]


def test_zeros(tmp_path: Path) -> None:
    zero = torch.zeros_like(STATE[D.format(0)])
    a = STATE | {D.format(0): zero, D.format(1): zero.clone()}
    found, faults = compared(tmp_path, a, a | {D.format(1): zero + 1})
    distances = {pair.name: pair.distance for pair in found.tensors}
    assert not faults and distances[D.format(0)] == 0 and distances[D.format(1)] == math.inf
    one = found.components["mamba"]
    scale = sum(t.double().square().sum().item() for name, t in a.items() if ".mamba." in name)
    assert one.distance is not None and math.isclose(one.distance, (zero.numel() / scale) ** 0.5, rel_tol=1e-9)
    assert one.largest == D.format(1) and one.equal == one.tensors - 1
    assert found.total.tensors == len(STATE)


def test_nan_is_most_apart(tmp_path: Path) -> None:
    nan = torch.full_like(STATE[D.format(0)], float("nan"))
    found, _ = compared(tmp_path, STATE, STATE | {D.format(0): nan, D.format(1): STATE[D.format(1)] * 1e9})
    one = found.components["mamba"]
    assert one.largest == D.format(0) and one.distance is not None and math.isnan(one.distance)
    assert found.components["linear"].distance == 0 and found.components["linear"].largest is None


def test_a_quant_state_that_does_not_fit(tmp_path: Path) -> None:
    name = "model.layers.0.mamba.in_proj.weight"
    weight = torch.zeros(STATE[name].numel() // 2, 1, dtype=torch.uint8)
    found, faults = compared(tmp_path, STATE, STATE | {name: weight, f"{name}.absmax": torch.ones(3)})
    (odd,) = [pair for pair in found.tensors if pair.distance is None]
    assert odd.name == name and "quant state" in odd.reason and faults == [odd.reason]
