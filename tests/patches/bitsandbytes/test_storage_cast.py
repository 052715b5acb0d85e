"""A cast leaves quantized bytes, in whatever dtype they are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .conftest import weights

pytest.importorskip("bitsandbytes", minversion="0.47")  # before, no other storage on a CPU
Linear = Callable[..., Any]
CASTS: dict[str, Callable[[Any], Any]] = {
    "module.to": lambda module: module.to(torch.float16),
    "module.to both": lambda module: module.to("cpu", torch.float16),
    "half": lambda module: module.half(),
    "float": lambda module: module.float(),
    "double": lambda module: module.double(),
    "bfloat16": lambda module: module.bfloat16(),
    "sequential": lambda module: torch.nn.Sequential(module).half(),
}


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_stock(linear: Linear, storage: torch.dtype) -> None:
    module = linear(64, 256, quant_storage=storage)
    wanted = weights(module)
    try:
        assert not torch.equal(weights(module.half()), wanted)
    except RuntimeError as error:
        assert "invalid for input" in str(error) or "must match" in str(error)


@pytest.mark.usefixtures("armed")
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("storage", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_mended(linear: Linear, cast: Callable[[Any], Any], storage: torch.dtype) -> None:
    module = linear(64, 256, bias=True, quant_storage=storage)
    weight, wanted, before = module.weight, weights(module), module.bias.dtype
    cast(module)
    assert module.weight is weight and module.weight.dtype == storage
    assert torch.equal(weights(module), wanted)
    # The bias is no quantized tensor, and is cast.
    assert (module.bias.dtype != before) == (cast is not CASTS["float"])


@pytest.mark.usefixtures("armed")
def test_the_weight_itself(linear: Linear) -> None:
    weight = linear(64, 256, quant_storage=torch.bfloat16).weight
    for cast in (weight.to(torch.float32), weight.to("cpu", torch.float32), weight.to(torch.empty(1))):
        assert type(cast) is type(weight) and cast.dtype == torch.bfloat16
        assert torch.equal(cast.data.view(torch.uint8), weight.data.view(torch.uint8))


@pytest.mark.usefixtures("armed")
def test_quantizing_and_unquantized_weights(linear: Linear) -> None:
    import bitsandbytes

    made = bitsandbytes.nn.Linear4bit(256, 64, quant_type="nf4")
    assert made.half().weight.dtype == torch.float16  # not quantized yet: numbers
    assert made.to("cpu").weight.quant_state.dtype == torch.float16


@pytest.mark.usefixtures("armed")
def test_a_failure_leaves_the_storage(linear: Linear) -> None:
    module = linear(64, 256, quant_storage=torch.bfloat16)
    wanted = weights(module)

    def fails(tensor: Any) -> Any:
        raise ValueError

    with pytest.raises(ValueError):
        module._apply(fails)
    assert module.weight.dtype == torch.bfloat16 and torch.equal(weights(module), wanted)
