"""The last tokens' product with the head: what PyTorch makes of it, and that of one matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from conformance.helpers import load
from patches.transformers.folded_products import ADAPTER
from support import synthetic
from zamba_compat.cpu import folded
from zamba_compat.cpu.function_mode import Linears, one_matrix

HIDDEN, HEAD = torch.randn(2, 7, 64).bfloat16(), torch.randn(96, 64).bfloat16()  # neither of which needs gradients


def operations(run: Callable[[], Any]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.no_grad():
        run()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("kept", [slice(-1, None), slice(-2, None), slice(1, 3)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_one_matrix(batch: int, kept: slice) -> None:
    """PyTorch's own multiplies batch by batch, as pytorch#186148 has it: `Goes` of the adapter where it does not."""
    x = HIDDEN[:batch, kept]
    assert "aten::bmm" in operations(lambda: F.linear(x, HEAD))

    def within() -> Tensor:
        with folded.within():
            return F.linear(x, HEAD)

    assert "aten::bmm" not in operations(within)
    wanted = x.double() @ HEAD.double().T
    assert within().shape == wanted.shape
    assert (within().double() - wanted).norm() < 2**-8 * wanted.norm()


def test_with_a_bias() -> None:
    x, bias = HIDDEN[:, -1:].float(), torch.randn(96)
    with folded.within():
        torch.testing.assert_close(F.linear(x, HEAD.float(), bias=bias), x @ HEAD.float().T + bias)


class Foreign(Tensor):
    """Someone's own."""


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(HIDDEN, id="all tokens"),
        pytest.param(HIDDEN[0, -1:], id="no batch"),
        pytest.param(HIDDEN[0, -1], id="a vector"),
        pytest.param(HIDDEN[:, -1:].as_subclass(Foreign), id="another type"),
    ],
)
def test_what_is_left_to_pytorch(x: Tensor) -> None:
    assert one_matrix(x, HEAD) is None
    assert one_matrix(HIDDEN[:, -1:], HEAD[0]) is None


def test_when_it_gains() -> None:
    prompt = torch.Size((2, 7))
    assert not folded.gains(prompt, "cpu"), "gradients"
    with torch.no_grad():
        assert folded.gains(prompt, "cpu")
        assert not folded.gains(prompt, "cuda") and not folded.gains(torch.Size((7, 1)), "cpu")
        assert not folded.gains(torch.Size(()), "cpu") and not folded.gains(torch.Size((0, 0)), "cpu")
        with Linears(lambda *given: None, lambda rows: True):
            assert not folded.gains(prompt, "cpu")
            assert "aten::bmm" not in operations(lambda: F.linear(HIDDEN[:, -1:], HEAD))
        assert folded.gains(prompt, "cpu")


@pytest.fixture
def frozen(tmp_path: Path) -> Any:
    """A model whose weights need no gradients, as PEFT leaves them; with them PyTorch folds by itself."""
    case = synthetic.case("7B")
    return load(synthetic.write_checkpoint(tmp_path / "model", case.state, case.config)).requires_grad_(False)


def test_a_models_last_token(frozen: Any) -> None:
    """Reproduced with the forward that the adapter wraps, and mended by it."""
    ids = torch.randint(5, 50, (2, 9))
    wraps = type(frozen).forward

    def heads(forward: Any) -> int:
        shape = (2, 1, frozen.config.hidden_size)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen, torch.no_grad():
            forward(frozen, ids, logits_to_keep=1)
        vocabulary = frozen.config.vocab_size
        products = [event.input_shapes for event in seen.events() if event.name == "aten::bmm"]
        return sum(tuple(shapes[0]) == shape and shapes[1][-1] == vocabulary for shapes in products)

    while hasattr(wraps, "__wrapped__"):
        wraps = wraps.__wrapped__
    assert heads(wraps) == 1
    assert heads(ADAPTER.patches[0].replace(wraps)) == 0
    assert heads(type(frozen).forward) == 0
