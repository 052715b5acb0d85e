"""4-bit products on a CPU without AVX512-BF16: what stock bitsandbytes does for each, and the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from zamba_compat.patches.bitsandbytes import cpu_product

from support.native import there
from zamba_compat import configure
from zamba_compat._engine.registry import Registry
from zamba_compat.cpu import nf4
from zamba_compat.cpu.native.quantized import loops

from .conftest import weights

bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.49")
from bitsandbytes import functional  # noqa: E402

Linear = Callable[..., Any]
LAYER = {"bias": True, "compute_dtype": torch.bfloat16}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without AVX512-BF16."""
    from bitsandbytes.nn import modules

    if loops() is None:
        pytest.skip("no loops in C here")
    for module in (functional, modules):
        monkeypatch.setattr(module, "has_avx512bf16", lambda: False)


@pytest.fixture
def other_model(plain: None) -> Iterator[None]:
    """The adapter, and no Zamba that runs."""
    registry = Registry((cpu_product.ADAPTER,))
    registry.arm()
    yield
    registry.disarm()


@pytest.fixture
def adapter(other_model: None) -> Iterator[None]:
    """Within a Zamba's forward pass."""
    with nf4.running():
        yield


@pytest.fixture
def dequantized(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whole weights that bitsandbytes writes out."""
    seen: list[Any] = []
    for name in ("gemm_4bit", "dequantize_4bit"):
        packet = getattr(torch.ops.bitsandbytes, name, None)
        if packet is None:
            continue
        original = packet.default

        class Watched:
            def __init__(self, of: Any) -> None:
                self.of = of

            def default(self, *args: Any, **kwargs: Any) -> Any:
                seen.append(args)
                return self.of(*args, **kwargs)

        monkeypatch.setattr(torch.ops.bitsandbytes, name, Watched(original))
    return seen


def off(found: torch.Tensor, module: Any, x: torch.Tensor) -> float:
    wanted = x.float() @ weights(module).float().T + module.bias.float()
    return float((found.detach().float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tokens", [1, 40])
def test_stock_writes_the_weight_out_for_every_call(
    plain: None, linear: Linear, dequantized: list[Any], tokens: int
) -> None:
    module, x = linear(96, 128, **LAYER), torch.randn(tokens, 128).bfloat16()
    with torch.no_grad():
        assert off(module(x), module, x) < 1e-2
    assert dequantized


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("nested", [False, True])
def test_with_the_adapter_it_does_not(
    adapter: None, linear: Linear, dequantized: list[Any], tokens: int, nested: bool
) -> None:
    module, x = linear(96, 128, compress_statistics=nested, **LAYER), torch.randn(2, tokens, 128).bfloat16()
    with torch.no_grad():
        found = module(x)
        assert not dequantized
        assert found.dtype == x.dtype and off(found, module, x) < 5e-3
        out = torch.empty(2, tokens, 96, dtype=torch.bfloat16)
        state = module.weight.quant_state
        assert bitsandbytes.matmul_4bit(x, module.weight, state, out=out) is out
        assert torch.equal(out, bitsandbytes.matmul_4bit(x, module.weight, state))


def test_gradients_are_bitsandbytes_own(adapter: None, linear: Linear) -> None:
    module, x = linear(96, 128, **LAYER), torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True)
    module(x).float().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 40])
def test_other_models_get_bitsandbytes_own_bits(
    other_model: None, linear: Linear, tokens: int, dtype: torch.dtype
) -> None:
    module, x = linear(96, 128, compute_dtype=dtype, bias=True), torch.randn(tokens, 128).to(dtype)
    with torch.no_grad():
        weight = functional.dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)
        wanted = torch.nn.functional.linear(x, weight, module.bias.to(dtype))
        assert torch.equal(module(x), wanted)


def test_where_bitsandbytes_would_round_float32(linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    there(loops())
    monkeypatch.setattr(functional, "has_avx512bf16", lambda: True)
    registry, seen = Registry((cpu_product.ADAPTER,)), []
    registry.arm()
    try:
        monkeypatch.setattr(nf4.Loops, "product", lambda self, *given: seen.append(given))
        module = linear(96, 128).train()  # nothing is packed
        with torch.no_grad():
            bitsandbytes.matmul_4bit(torch.randn(1, 128), module.weight, module.weight.quant_state)
            assert len(seen) == 1
            bitsandbytes.matmul_4bit(torch.randn(1, 128).bfloat16(), module.weight, module.weight.quant_state)
        assert len(seen) == 1
    finally:
        registry.disarm()


def test_it_is_left_out_without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "has_avx512bf16", lambda: False)
    configure(native=False)
    try:
        assert cpu_product.not_needed() is not None
    finally:
        configure(native=None)
