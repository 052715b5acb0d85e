"""PyTorch's own kernel for products with one row: the switch goes back, and the products are right."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zamba_compat import one_row

needs_switch = pytest.mark.skipif(not one_row._is_measured(), reason="this PyTorch has no such kernels")


@pytest.fixture(autouse=True)
def enabled_before_and_after() -> Iterator[None]:
    before = torch._C._get_mkldnn_enabled()
    yield
    assert torch._C._get_mkldnn_enabled() == before


@needs_switch
def test_the_switch_goes_back_after_an_error() -> None:
    def fail() -> None:
        assert not torch._C._get_mkldnn_enabled()
        raise ValueError

    with pytest.raises(ValueError), one_row.own_kernel():
        fail()
    assert torch._C._get_mkldnn_enabled()


@needs_switch
def test_inner_and_other_users_change_nothing() -> None:
    seen = []

    def other() -> None:
        with one_row.own_kernel():
            pass
        seen.append(torch._C._get_mkldnn_enabled())

    with one_row.own_kernel():
        with one_row.own_kernel():
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        seen.append(torch._C._get_mkldnn_enabled())
    assert seen == [False, False]


@needs_switch
def test_switched_off_stays_switched_off() -> None:
    torch._C._set_mkldnn_enabled(False)
    try:
        with one_row.own_kernel():
            pass
        assert not torch._C._get_mkldnn_enabled()
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize("shape", [(8512, 2048), (10448, 2560), (2048, 4096), (33, 130)])
def test_products_are_accumulated_in_float32(shape: tuple[int, int]) -> None:
    weight, x = torch.randn(shape).bfloat16(), torch.randn(1, 1, shape[1]).bfloat16()
    with torch.no_grad(), one_row.own_kernel():
        got = torch.nn.functional.linear(x, weight)
    wanted = x.double() @ weight.double().T
    assert (got.double() - wanted).abs().max() < 2**-8 * wanted.abs().max()


@needs_switch
def test_what_gains() -> None:
    weight = torch.empty(2, 2, dtype=torch.bfloat16)
    assert not one_row.gains(weight, 1)  # gradients
    with torch.no_grad():
        assert one_row.gains(weight, 1)
        assert not one_row.gains(weight, 2)
        assert not one_row.gains(weight.float(), 1)
        assert not one_row.gains(weight.to("meta"), 1)


def model_of(in_proj: Any, *, hybrid: bool = False) -> Any:
    """As much of a model as is looked at."""
    mamba = SimpleNamespace(in_proj=in_proj)
    layer = SimpleNamespace(mamba_decoder=SimpleNamespace(mamba=mamba)) if hybrid else SimpleNamespace(mamba=mamba)
    return SimpleNamespace(model=SimpleNamespace(layers=[layer]))


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hybrid", [True, False])
def test_the_faster_product_is_right(tiles: bool, bias: bool, hybrid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_row, "has_tiles", lambda: tiles)
    layer = torch.nn.Linear(130, 33, bias=bias).bfloat16()
    x = torch.randn(1, 1, 130).bfloat16()
    context = one_row.faster(model_of(layer, hybrid=hybrid))
    assert context is not None
    with torch.no_grad(), context:
        got = layer(x)
    wanted = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert got.shape == (1, 1, 33)
    assert (got.double() - wanted).abs().max() < 2**-7 * wanted.abs().max()


def test_a_layer_that_is_another_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_row, "has_tiles", lambda: True)
    assert one_row.faster(SimpleNamespace(model=SimpleNamespace(layers=[torch.nn.Identity()]))) is None


@pytest.mark.parametrize("projection", [SimpleNamespace(weight=torch.zeros(4, 1, dtype=torch.uint8)), object()])
def test_a_quantized_model_with_tiles_has_too_few_to_gain(projection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_row, "has_tiles", lambda: True)
    assert one_row.faster(model_of(projection)) is None
    monkeypatch.setattr(one_row, "has_tiles", lambda: False)
    assert one_row.faster(model_of(projection)) is not None
