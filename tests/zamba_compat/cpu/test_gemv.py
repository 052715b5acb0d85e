"""Products of one row by the loop in C: right, and taken only where they are products and nothing more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.native import equal_by_threads, is_off, there
from zamba_compat.cpu import gemv
from zamba_compat.cpu.native import rows


@pytest.fixture(autouse=True)
def loop() -> rows.Loop:
    return there(rows.loop())


@pytest.mark.parametrize("shape", [(8512, 2048), (10448, 2560), (2048, 4096), (33, 130)])
def test_products_are_summed_in_float32(shape: tuple[int, int]) -> None:
    weight, x = torch.randn(shape).bfloat16(), torch.randn(1, 1, shape[1]).bfloat16()
    with torch.no_grad(), gemv.within():
        got = F.linear(x, weight)
    wanted = x.double() @ weight.double().T
    assert got.shape == (1, 1, shape[0])
    assert (got.double() - wanted).abs().max() < 2**-8 * wanted.abs().max()


def test_the_same_bits_with_any_number_of_threads() -> None:
    weight, x = torch.randn(333, 512).bfloat16(), torch.randn(1, 512).bfloat16()

    def run() -> Tensor:
        result = gemv.product(x, weight)
        assert result is not None
        return result

    assert equal_by_threads(run)


def test_no_switch_of_the_whole_process_is_touched() -> None:
    """Other threads' products would have other bits meanwhile."""
    seen = []
    with torch.no_grad(), gemv.within():
        seen.append(torch._C._get_mkldnn_enabled())
    assert seen == [torch._C._get_mkldnn_enabled()]


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        (torch.zeros(1, 4), torch.zeros(3, 4), None),
        (torch.zeros(1, 4).half(), torch.zeros(3, 4).half(), None),
        (torch.zeros(1, 4).bfloat16(), torch.zeros(3, 4).bfloat16(), torch.zeros(3).bfloat16()),
        (torch.zeros(1, 4).bfloat16(), torch.zeros(4, 3).bfloat16().T, None),
        (torch.zeros(1, 4).bfloat16(), torch.zeros(3, 5).bfloat16(), None),
        (torch.zeros(1, 4, device="meta").bfloat16(), torch.zeros(3, 4, device="meta").bfloat16(), None),
    ],
    ids=["float32", "float16", "bias", "turned", "other columns", "meta"],
)
def test_what_is_left_to_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    assert gemv.product(x, weight, bias) is None


def test_what_gains() -> None:
    weight = torch.empty(2, 2, dtype=torch.bfloat16)
    assert not gemv.gains(weight, 1)  # gradients
    with torch.no_grad():
        assert gemv.gains(weight, 1)
        assert not gemv.gains(weight, 2)
        assert not gemv.gains(weight.float(), 1)
        assert not gemv.gains(weight.to("meta"), 1)
        assert is_off(lambda: gemv.gains(weight, 1) or None)


def model_of(in_proj: Any, *, hybrid: bool = False) -> Any:
    """As much of a model as is looked at."""
    mamba = SimpleNamespace(in_proj=in_proj)
    layer = SimpleNamespace(mamba_decoder=SimpleNamespace(mamba=mamba)) if hybrid else SimpleNamespace(mamba=mamba)
    return SimpleNamespace(model=SimpleNamespace(layers=[layer]))


@pytest.mark.parametrize("hybrid", [True, False])
def test_which_models_are_bfloat16(hybrid: bool) -> None:
    assert gemv.is_bfloat16(model_of(torch.nn.Linear(4, 4).bfloat16(), hybrid=hybrid))
    assert not gemv.is_bfloat16(model_of(torch.nn.Linear(4, 4), hybrid=hybrid))
    assert not gemv.is_bfloat16(model_of(SimpleNamespace(weight=torch.zeros(4, 1, dtype=torch.uint8))))
    assert not gemv.is_bfloat16(model_of(object()))
    assert not gemv.is_bfloat16(SimpleNamespace(model=SimpleNamespace(layers=[torch.nn.Identity()])))
