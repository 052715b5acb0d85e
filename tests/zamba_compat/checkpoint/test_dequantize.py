"""Values of quantized weights: by hand, and against bitsandbytes' own kernels where it is installed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from zamba_compat.checkpoint.layouts.dequantize import dequantize, method_of
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.quant_state_names import part_of

MAP = torch.linspace(-1, 1, 16)


def state(**entries: Any) -> Tensor:
    return torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8)


def test_part() -> None:
    assert part_of("a.weight.absmax") == "absmax"
    assert part_of("a.weight.quant_state.bitsandbytes__nf4") == "quant_state.bitsandbytes__nf4"
    assert part_of("a.SCB") == "SCB"
    assert part_of("a.weight") is None and part_of("a.bias") is None


def test_four_bits_by_hand() -> None:
    # Seven values, two blocks of four: the second one is short, and so is the last byte.
    codes = [0, 15, 8, 7, 3, 12, 1]
    packed = torch.tensor([0 << 4 | 15, 8 << 4 | 7, 3 << 4 | 12, 1 << 4], dtype=torch.uint8)[:, None]
    parts = {
        "absmax": torch.tensor([2.0, 10.0]),
        "quant_map": MAP,
        "quant_state.bitsandbytes__fp4": state(shape=[7, 1], blocksize=4, dtype="float32"),
    }
    assert method_of(parts) == "fp4"
    wanted = torch.tensor([MAP[code] * (2 if i < 4 else 10) for i, code in enumerate(codes)])
    assert torch.equal(dequantize(packed, parts, where="w"), wanted[:, None])
    as_floats = packed.view(-1).view(torch.bfloat16)  # bnb_4bit_quant_storage
    assert torch.equal(dequantize(as_floats, parts, where="w"), wanted[:, None])


def test_eight_bits_by_hand() -> None:
    parts = {"SCB": torch.tensor([127.0, 254.0]), "weight_format": torch.tensor(0, dtype=torch.uint8)}
    weight = torch.tensor([[1, -2], [3, 127]], dtype=torch.int8)
    assert method_of(parts) == "int8"
    assert torch.equal(dequantize(weight, parts, where="w"), torch.tensor([[1.0, -2.0], [6.0, 254.0]]))


@pytest.mark.parametrize(
    "change",
    [
        {"absmax": torch.ones(3)},
        {"absmax": None},
        {"quant_state.bitsandbytes__nf4": state(shape=[5, 2], blocksize=4)},
        {"quant_state.bitsandbytes__nf4": state(blocksize=4)},
        {"quant_state.bitsandbytes__nf4": torch.tensor([1], dtype=torch.uint8)},
        {"quant_state.bitsandbytes__nf4": None},
    ],
)
def test_parts_that_do_not_fit(change: dict[str, Any]) -> None:
    parts: dict[str, Any] = {
        "absmax": torch.ones(2),
        "quant_map": MAP,
        "quant_state.bitsandbytes__nf4": state(shape=[4, 2], blocksize=4),
    }
    weight = torch.zeros(4, 1, dtype=torch.uint8)
    assert dequantize(weight, parts, where="w").shape == (4, 2)
    parts = {name: part for name, part in {**parts, **change}.items() if part is not None}
    with pytest.raises(CheckpointError, match="w: Its quant state does not fit it"):
        dequantize(weight, parts, where="w")


@pytest.mark.slow  # bitsandbytes takes seconds to import
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (300, 130)])
def test_against_bitsandbytes(kind: str, double: bool, shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    try:
        packed, found = functional.quantize_4bit(
            weight, blocksize=64, quant_type=kind, compress_statistics=double, quant_storage=torch.uint8
        )
    except (AssertionError, RuntimeError, AttributeError, TypeError) as error:
        pytest.skip(f"this bitsandbytes does not quantize here: {error}")
    parts = found.as_dict(packed=True)
    assert ("nested_absmax" in parts) == double
    ours = dequantize(packed, parts, where="w")
    theirs = functional.dequantize_4bit(packed, found)
    assert ours.shape == weight.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert 0.02 < ((ours - weight).norm() / weight.norm()).item() < 0.2
