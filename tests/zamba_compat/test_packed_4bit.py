"""The product with a packed weight, part by part, is that of bitsandbytes' own dequantized weight."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from zamba_compat import configure, one_row, packed_4bit
from zamba_compat.packed_4bit import ROWS, packed_bytes, plain_bytes, product

pytest.importorskip("bitsandbytes", minversion="0.49")
from bitsandbytes import functional


@pytest.fixture(params=[True, False], ids=["in C", "bitsandbytes"], autouse=True)
def native(request: pytest.FixtureRequest) -> Iterator[None]:
    """With and without the loop that writes weights out."""
    configure(native=request.param)
    yield
    configure(native=None)


@pytest.mark.parametrize("part", [1, ROWS * 192, 2**21])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("rows", [1, 32, 100, 135])
def test_product(rows: int, nested: bool, kind: str, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_4bit, "_DEQUANTIZED", part)
    monkeypatch.setattr(packed_4bit, "_WRITTEN", part)
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, 192, generator=generator)
    x, bias = torch.randn(7, 192, generator=generator), torch.randn(rows, generator=generator)
    data, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=64)
    packed = packed_bytes(data.reshape(rows, -1))
    dequantized = functional.dequantize_4bit(data, state)
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        got = product(x.to(dtype), packed, state, bias.to(dtype))
        wanted = torch.nn.functional.linear(
            x.to(dtype).double(), dequantized.to(dtype).double(), bias.to(dtype).double()
        )
        assert got.dtype == dtype and got.shape == (7, rows)
        assert (got.double() - wanted).abs().max() <= most * wanted.abs().max()
    assert torch.equal(product(x, packed, state, None), product(x, packed, state, torch.zeros(rows)))


@pytest.mark.parametrize("step", [1, 3 * ROWS // 2 * 65, 2**19])
def test_unpacking_does_not_depend_on_its_steps(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.randint(0, 256, (333, 65), dtype=torch.uint8)
    monkeypatch.setattr(packed_4bit, "_UNPACKED", step)
    assert torch.equal(plain_bytes(packed_bytes(plain), 333), plain)


@pytest.mark.parametrize("tiles", [True, False])
def test_the_kernel_is_for_a_few_tokens(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer where the rest is fast."""
    monkeypatch.setattr(one_row, "has_tiles", lambda: tiles)
    fast = packed_4bit.most_tokens()
    configure(native=False)
    assert fast <= packed_4bit.most_tokens() == (64 if tiles else 256)
