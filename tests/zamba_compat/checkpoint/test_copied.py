"""Copies: which are compared, with what, and the largest distance. (Values and faults: test_inspection.)"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from support import synthetic
from zamba_compat.checkpoint.layouts.components import COMPONENTS
from zamba_compat.checkpoint.layouts.survey import survey
from zamba_compat.checkpoint.reading.lenient import open_as_far
from zamba_compat.checkpoint.resolving.copied import Copies, compare_copies

CONFIG = synthetic.make_config("7B", hidden_size=16, n_mamba_heads=4, adapter_rank=2)
STATE = synthetic.make_state(CONFIG)
Q = "model.layers.{}.shared_transformer.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("distances", "worst"),
    [
        ({"a": 0.0}, None),
        ({"a": 0.0, "b": None}, None),
        ({"a": 0.0, "b": 0.1, "c": 0.3, "d": None}, 0.3),
        ({"a": 0.0, "b": math.inf, "c": 0.3}, math.inf),
    ],
)
def test_worst(distances: dict[str, float | None], worst: float | None) -> None:
    assert Copies("a", "a", distances, False, True).worst == worst


def test_nan_is_worst() -> None:
    worst = Copies("a", "a", {"a": 0.0, "b": math.nan, "c": math.inf}, False, True).worst
    assert worst is not None and math.isnan(worst)


def test_bits_count(tmp_path: Path) -> None:
    """Equal NaNs are equal copies; 0 and -0 are not, though no distance tells them apart."""
    state = synthetic.to_expanded(STATE, CONFIG)
    for layer in (2, 5, 9):
        state[Q.format(layer)] = torch.full_like(state[Q.format(layer)], float("nan"))
    for layer, sign in ((3, 1.0), (7, -1.0)):
        state[Q.format(layer)] = sign * torch.zeros_like(state[Q.format(layer)])
    opened = open_as_far(synthetic.write_checkpoint(tmp_path / "a", state, CONFIG))
    with opened.checkpoint:
        found = survey(opened)
        copies = {one.key: one for one in compare_copies(found, COMPONENTS)}
    assert copies[Q.format(2)].equal and copies[Q.format(2)].worst == 0
    assert not copies[Q.format(3)].equal and copies[Q.format(3)].worst == 0
    assert len(found.faults.found) == 1 and "1 shared tensors" in found.faults.found[0]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    done: list[int] = []

    class Bar:
        def update(self, n: int) -> None:
            done.append(n)

        def close(self) -> None:
            done.append(0)

    def progress(what: str, total: int) -> Bar:
        seen.append((what, total))
        return Bar()

    state = synthetic.to_expanded(STATE, CONFIG)
    opened = open_as_far(synthetic.write_checkpoint(tmp_path / "a", state, CONFIG))
    with opened.checkpoint:
        compare_copies(survey(opened), ["attention"], progress)
    ((what, total),) = seen
    size = sum(t.nbytes for name, t in state.items() if ".self_attn." in name)
    assert what == "comparing copies" and total == sum(done) == size and done[-1] == 0
