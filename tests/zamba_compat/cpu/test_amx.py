"""Products with tiles: used by the model wherever a weight is multiplied, and by nothing that they are not for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.helpers import load, relative
from support import synthetic
from support.reference import forward
from zamba_compat.cpu import amx, gemv
from zamba_compat.cpu.native import tiles


class Plain:
    """What the loops in C do, by PyTorch, where there are no tiles. rows: of the products so far."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def room(self, rows: int, columns: int) -> int:
        return 1

    def product(self, x: Tensor, weight: Tensor, room: Tensor, out: Tensor, *, add: bool) -> None:
        self.rows.append(len(x))
        exact = x.double() @ weight.double().T
        out.copy_(out.double() + exact if add else exact)


class Counted(Plain):
    """The loops in C."""

    def __init__(self, loops: Any) -> None:
        super().__init__()
        self.room, self._product = loops.room, loops.product  # type: ignore[method-assign]

    def product(self, x: Tensor, weight: Tensor, room: Tensor, out: Tensor, *, add: bool) -> None:
        self.rows.append(len(x))
        self._product(x, weight, room, out, add=add)


@pytest.fixture(params=["here", "plain"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Plain:
    here = tiles.loops()
    if request.param == "here" and here is None:
        pytest.skip("no tiles here")
    found = Plain() if request.param == "plain" else Counted(here)
    monkeypatch.setattr(gemv, "has_tiles", lambda: True)
    monkeypatch.setattr(amx, "loops", lambda: found)
    return found


def test_what_gains(loops: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not amx.gains(torch.bfloat16, "cpu", 128)  # gradients
    with torch.no_grad():
        assert amx.gains(torch.bfloat16, "cpu", 2)
        assert not amx.gains(torch.bfloat16, "cpu", 1)
        assert not amx.gains(torch.bfloat16, "cuda", 128)
        assert not amx.gains(torch.float16, "cpu", 128) and not amx.gains(torch.float32, "cpu", 128)
        monkeypatch.setattr(gemv, "has_tiles", lambda: False)
        assert not amx.gains(torch.bfloat16, "cpu", 2)
        monkeypatch.setattr(gemv, "has_tiles", lambda: True)
        monkeypatch.setattr(amx, "loops", lambda: None)
        assert not amx.gains(torch.bfloat16, "cpu", 2)


@pytest.mark.parametrize("bias", [True, False])
def test_instead_of_linear(loops: Plain, bias: bool) -> None:
    layer = torch.nn.Linear(96, 35, bias=bias).bfloat16()
    x = torch.randn(2, 5, 96).bfloat16()
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.no_grad(), amx.within():
        got = layer(x)
        layer(x[:1, :1])
    assert loops.rows == [10]
    assert got.shape == exact.shape
    assert ((got.double() - exact).abs() <= 1.01 * 2**-8 * exact.abs() + 1e-5).all()


@torch.no_grad()
def test_what_does_not_fill_a_tile_stays_with_pytorch(loops: Plain) -> None:
    x, weight = torch.randn(4, 40).bfloat16(), torch.randn(8, 40).bfloat16()
    bias, to = torch.randn(8).bfloat16(), torch.randn(4, 8).bfloat16()
    before = to.clone()
    assert amx.product(x, weight, bias, out=to) is None and not amx.add_product(to, x, weight)
    assert torch.equal(to, before)
    turned = torch.randn(64, 4).bfloat16().T  # columns that do not follow each other
    assert amx.product(turned, torch.randn(8, 64).bfloat16()) is None
    assert loops.rows == []
    assert amx.product(turned.contiguous(), torch.randn(8, 64).bfloat16()) is not None and loops.rows == [4]


def test_gradients_stay_with_pytorch(loops: Plain) -> None:
    """Also where somebody asks for them within a model that is called without."""
    layer, x = torch.nn.Linear(64, 8, bias=False).bfloat16(), torch.randn(4, 64).bfloat16()
    with torch.no_grad(), amx.within(), torch.enable_grad():
        assert layer(x).requires_grad
    assert loops.rows == []


@pytest.mark.parametrize("pattern", ["1.2B", "7B"])
@pytest.mark.parametrize("length", [1, 3, 70])
def test_a_model_is_as_right_as_without(
    loops: Plain, pattern: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = synthetic.case(pattern, length=length)
    state = {name: tensor.bfloat16() for name, tensor in case.state.items()}
    exact = forward({name: tensor.float() for name, tensor in state.items()}, case.config, case.ids)
    model = load(synthetic.write_checkpoint(tmp_path / "model", state, case.config), torch_dtype=torch.bfloat16)

    def error(gains: bool) -> float:
        monkeypatch.setattr(gemv, "has_tiles", lambda: gains)
        with torch.inference_mode():
            return relative(model(case.ids).logits, exact)

    direct = error(False)
    assert loops.rows == []
    assert error(True) < 1.5 * direct + 1e-3
    assert set(loops.rows) <= {length} and bool(loops.rows) == (length > 1)
    if length > 1:  # every product with a weight that fills tiles
        fills = [name for name, weight in state.items() if weight.dim() == 2 and weight.shape[1] % 32 == 0]
        assert len(loops.rows) >= len([name for name in fills if "_proj" in name])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16], ids=str)
def test_not_of_a_quantized_model(loops: Plain, dtype: torch.dtype) -> None:
    """Of which the head alone is a product in bfloat16."""
    from patches.transformers.tiled_products import ADAPTER

    in_proj = SimpleNamespace(weight=torch.zeros(4, 1, dtype=dtype))
    layers = [SimpleNamespace(mamba=SimpleNamespace(in_proj=in_proj))]
    weight = torch.randn(4, 64).bfloat16()
    model = SimpleNamespace(model=SimpleNamespace(layers=layers, embed_tokens=SimpleNamespace(weight=weight)))
    head = ADAPTER.patches[0].replace(lambda self, ids: torch.nn.functional.linear(weight, weight))
    head(model, torch.ones(1, 5))
    assert bool(loops.rows) == (dtype == torch.bfloat16)
