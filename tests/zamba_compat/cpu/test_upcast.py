"""16-bit products by way of float32: one rounding from the exact ones, and used by the model where they gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.helpers import load, relative
from support import synthetic
from support.reference import forward
from zamba_compat.cpu import upcast

SHORT = (torch.bfloat16, torch.float16)


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upcast, "has_instructions", lambda dtype: False)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 33, 130), (4, 3000, 700), (1, 5, 3)])
def test_one_rounding_from_exact(dtype: torch.dtype, bias: bool, shape: tuple[int, int, int]) -> None:
    rows, features, width = shape
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(features, width).to(dtype)
    added = torch.randn(features).to(dtype) if bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), added.double() if added is not None else None)
    got = upcast.product(x, weight, added)
    assert got.dtype == dtype
    place = torch.empty_like(got)
    assert upcast.product(x, weight, added, out=place) is place and torch.equal(place, got)
    unit = torch.finfo(dtype).eps / 2
    near_zero = 1e-5 * exact.abs().max()  # where float32 sums cancel
    assert ((got.double() - exact).abs() <= 1.01 * unit * exact.abs() + near_zero).all()


def test_what_gains(without_instructions: None) -> None:
    assert not upcast.gains(torch.bfloat16, "cpu", 128)  # gradients
    with torch.no_grad():
        assert upcast.gains(torch.bfloat16, "cpu", 128) and upcast.gains(torch.float16, "cpu", 128)
        assert not upcast.gains(torch.bfloat16, "cpu", 1)
        assert not upcast.gains(torch.bfloat16, "cuda", 128)
        assert not upcast.gains(torch.float32, "cpu", 128)


def test_nothing_gains_where_there_are_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upcast, "has_instructions", lambda dtype: True)
    with torch.no_grad():
        assert not upcast.gains(torch.bfloat16, "cpu", 128)


@pytest.mark.parametrize("pattern", ["1.2B", "7B"])
@pytest.mark.parametrize("length", [3, 70])
def test_a_model_is_as_right_as_without(
    pattern: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = synthetic.case(pattern, length=length)
    state = {name: tensor.bfloat16() for name, tensor in case.state.items()}
    exact = forward({name: tensor.float() for name, tensor in state.items()}, case.config, case.ids)
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config), torch_dtype=torch.bfloat16)
    rows: list[int] = []
    product = upcast.product

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(x))
        return product(x, *args, **kwargs)

    def error(has: bool) -> float:
        monkeypatch.setattr(upcast, "has_instructions", lambda dtype: has)
        with torch.inference_mode():
            return relative(model(case.ids).logits, exact)

    direct = error(True)
    monkeypatch.setattr(upcast, "product", counted)
    assert error(False) < 1.5 * direct + 1e-3
    assert len(rows) == 0 if length < upcast.FEWEST else set(rows) == {length}
    if rows:  # every product with a weight: two per mixer and one per position, the shared block's eight, the head
        hybrids = [kind for kind in case.config["layers_block_type"] if kind == "hybrid"]
        assert len(rows) >= 2 * case.config["num_hidden_layers"] + 8 * len(hybrids) + 1
