"""Only F.linear of plain 16-bit tensors on a CPU is replaced, inside the context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.asked import Asked
from zamba_compat.cpu import amx, blocking
from zamba_compat.cpu.function_mode import Linears, unasked

X, WEIGHT = torch.randn(2, 3, 8).bfloat16(), torch.randn(5, 8).bfloat16()


class Foreign(Tensor):
    """Someone's quantized weight."""


def marked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert x.dim() == 2
    return torch.full((len(x), len(weight)), 7.0, dtype=x.dtype)


def within(*operands: Any, fits: Any = lambda rows: True) -> Tensor:
    with torch.no_grad(), Linears(marked, fits):
        return F.linear(*operands)


def test_a_plain_product_is_replaced() -> None:
    assert torch.equal(within(X, WEIGHT), torch.full((2, 3, 5), 7.0, dtype=torch.bfloat16))
    with torch.no_grad(), Linears(marked, lambda rows: True):
        layer = torch.nn.Linear(8, 5).half()
        assert (layer(X.half()) == 7).all()
    assert not (layer(X.half()) == 7).all(), "outside of the context"


def test_rows_decide() -> None:
    asked = []
    within(X, WEIGHT, fits=lambda rows: asked.append(rows))
    assert asked == [6]
    assert torch.equal(within(X, WEIGHT, fits=lambda rows: False), F.linear(X, WEIGHT))


@pytest.mark.parametrize(
    "operands",
    [
        pytest.param((X.float(), WEIGHT.float()), id="32 bits"),
        pytest.param((X, WEIGHT.as_subclass(Foreign)), id="another type of weight"),
        pytest.param((X.to("meta"), WEIGHT.to("meta")), id="another device"),
        pytest.param((X, WEIGHT[0]), id="a vector"),
    ],
)
def test_everything_else_is_left_alone(operands: tuple[Tensor, ...]) -> None:
    got, wanted = within(*operands), F.linear(*operands)
    assert got.shape == wanted.shape and got.device == wanted.device
    assert got.is_meta or torch.equal(got, wanted)


def test_mixed_dtypes_fail_as_they_do() -> None:
    with pytest.raises(RuntimeError):
        within(X, WEIGHT.float())


def test_other_functions_are_left_alone() -> None:
    with Linears(marked, lambda rows: True):
        assert torch.equal(X @ WEIGHT.T, torch.matmul(X, WEIGHT.T))
        assert not (X @ WEIGHT.T == 7).all()


def test_nothing_is_asked_of_plain_tensors() -> None:
    with Asked() as asked:
        with unasked(X):
            X + X
        assert asked.functions == []
        foreign = X.as_subclass(Foreign)
        before = len(asked.functions)
        with unasked(foreign):
            foreign + foreign
        assert len(asked.functions) > before


@pytest.mark.parametrize("name", ["norm", "projection", "product", "added product"])
def test_our_own_loops_ask_nothing(name: str) -> None:
    """However many blocks there are: hundreds of functions of a norm, thousands of a prompt."""
    few, many = (count_of(name, rows) for rows in (64, 640))
    assert few == many < 30


def count_of(name: str, rows: int) -> int:
    x, layer = torch.randn(rows, 32).bfloat16(), torch.nn.Linear(32, 32, bias=False).bfloat16()
    norm = torch.nn.RMSNorm(32).bfloat16()
    norm.variance_epsilon = 1e-5
    out = torch.zeros(rows, 32).bfloat16()
    run = {
        "norm": lambda: blocking.rms_norm(norm, x),
        "projection": lambda: blocking.project(layer, x, "test"),
        "product": lambda: amx.product(x, layer.weight),
        "added product": lambda: amx.add_product(out, x, layer.weight),
    }[name]
    with torch.no_grad(), Asked() as asked:
        run()
    return len(asked.functions)


def test_a_depth_says_when_it_ends() -> None:
    """Also when the body fails."""
    with pytest.raises(ZeroDivisionError), Linears(marked, lambda rows: True), Linears(marked, lambda rows: True):
        assert Linears.runs()
        raise ZeroDivisionError
    assert not Linears.runs()
