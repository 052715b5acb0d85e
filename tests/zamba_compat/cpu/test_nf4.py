"""Products with 4-bit weights: what the dequantized weight gives, and None where it is not ours to compute."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import there
from zamba_compat import configure
from zamba_compat.cpu import nf4, upcast
from zamba_compat.cpu.native.quantized import Loops, Quantized, is_wide, loops

functional = pytest.importorskip("bitsandbytes.functional")
COLUMNS = 384


@pytest.fixture
def compiled() -> Loops:
    return there(loops())


def quantized(rows: int, kind: str = "nf4", nested: bool = False, block: int = 64, **more: Any) -> tuple[Tensor, Any]:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, more.pop("columns", COLUMNS), generator=generator) / 20
    data, state = functional.quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=nested, **more)
    return data, state


def weights(data: Tensor, state: Any) -> Tensor:
    return functional.dequantize_4bit(data, state).float()  # type: ignore[no-any-return]


def inputs(tokens: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(tokens)).to(dtype)


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_weights_are_bitsandbytes_to_the_last_bit(
    compiled: Loops, kind: str, nested: bool, block: int, storage: torch.dtype
) -> None:
    data, state = quantized(33, kind, nested, block, quant_storage=storage)
    out = torch.full((20, COLUMNS), torch.nan)
    compiled.dequantize(Quantized(data, state), 13, out)
    assert torch.equal(out, weights(data, state)[13:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3, 12, 13, 70])
@pytest.mark.parametrize("rows", [1, 33, 3000])  # the last in several parts
@pytest.mark.parametrize("biased", [False, True])
def test_products(compiled: Loops, rows: int, tokens: int, dtype: torch.dtype, biased: bool) -> None:
    """Within the rounding of the result: the sums of float32 show in float32, and are rounded once elsewhere.

    A weight that is written out in bfloat16 is rounded as bitsandbytes rounds it.
    """
    data, state = quantized(rows, nested=rows > 1)
    x, bias = inputs(tokens, dtype), torch.linspace(-1, 1, rows).to(dtype) if biased else None
    found = nf4.product(x.view(1, tokens, COLUMNS), data, state, bias)
    weight = weights(data, state)
    few = tokens <= (nf4.most_tokens(dtype, is_wide()) if bias is None else 2)
    if not few and dtype == torch.bfloat16 and is_wide() and upcast.has_instructions(dtype):
        weight = weight.bfloat16()
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert found is not None and found.shape == (1, tokens, rows) and found.dtype == dtype
    worst = ((found[0].double() - wanted).abs() / wanted.abs().clamp(min=wanted.abs().mean())).max()
    assert worst < {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] * 1.01


@pytest.mark.parametrize("biased", [False, True])
def test_a_weight_in_parts(compiled: Loops, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, state = quantized(77, nested=True)
    x, bias = inputs(40, torch.bfloat16), torch.linspace(-1, 1, 77).bfloat16() if biased else None
    whole = nf4.product(x, data, state, bias)
    monkeypatch.setattr(nf4, "_PART", 10 * COLUMNS)
    parts = nf4.product(x, data, state, bias)
    assert whole is not None and parts is not None
    torch.testing.assert_close(parts, whole, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_any_number_of_threads(compiled: Loops, limit: int) -> None:
    """Also more than rows, and fewer than asked for: each row is computed once."""
    program = """if True:
        from types import SimpleNamespace
        import torch
        from zamba_compat.cpu.native.quantized import Quantized, loops
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for rows in (1, 2, 5, 100):
                scales, code, x = torch.rand(rows, 2), torch.randn(16), torch.randn(128)
                state = SimpleNamespace(shape=(rows, 128), blocksize=64, nested=False, state2=None, code=code)
                state.absmax = scales.flatten()
                data = torch.randint(256, (rows, 64), dtype=torch.uint8)
                codes = torch.stack((data >> 4, data & 15), -1).int().flatten(1)
                weight = code[codes] * scales.repeat_interleave(64, 1)
                out, copied = torch.full((rows,), torch.nan), torch.full((rows, 128), torch.nan)
                loops().product(Quantized(data, state), x, out)
                loops().dequantize(Quantized(data, state), 0, copied)
                assert torch.equal(copied, weight), (threads, rows)
                assert torch.allclose(out, weight @ x, atol=1e-4), (threads, rows)
    """
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "OMP_THREAD_LIMIT": str(limit)})


def test_where_it_stays_bitsandbytes_own(compiled: Loops) -> None:
    data, state = quantized(8)
    x = inputs(2, torch.bfloat16)
    assert nf4.product(x, data, state, None) is not None
    assert nf4.product(x[:0], data, state, None) is None, "no tokens"
    assert nf4.product(x[:, :8], data, state, None) is None, "[in, out] instead of [out, in]"
    assert nf4.product(x.double(), data, state, None) is None
    assert nf4.product(x.clone().requires_grad_(), data, state, None) is None, "gradients"
    assert nf4.product(x, data, state, torch.zeros(8, requires_grad=True)) is None, "gradients of the bias"
    with torch.no_grad():
        assert nf4.product(x.clone().requires_grad_(), data, state, None) is not None
    state.packing_format_for_cpu = True
    assert nf4.product(x, data, state, None) is None, "the layout of bitsandbytes' own kernel"
    state.packing_format_for_cpu = False
    configure(native=False)
    try:
        assert nf4.product(x, data, state, None) is None
    finally:
        configure(native=None)


@pytest.mark.parametrize(("columns", "block"), [(96, 64), (384, 256), (64, 32)])
def test_shapes_the_loops_do_not_take(compiled: Loops, columns: int, block: int) -> None:
    """Blocks that go over the ends of rows, or are shorter than what is read at once."""
    data, state = quantized(8, columns=columns)
    state.blocksize = block
    with pytest.raises(ValueError, match="not a matrix"):
        Quantized(data, state)


@pytest.mark.parametrize("name", ["absmax", "code", "blocksize", "state2.absmax", "state2.code"])
def test_states_that_say_more_than_they_have(compiled: Loops, name: str) -> None:
    """As a damaged checkpoint may: nothing is read that is not there."""
    data, state = quantized(300, nested=True)
    Quantized(data, state)
    owner, name = (state.state2, name.removeprefix("state2.")) if "." in name else (state, name)
    setattr(owner, name, 0 if name == "blocksize" else getattr(owner, name)[:-1])
    with pytest.raises(ValueError, match="not a matrix"):
        Quantized(data, state)


def test_a_row_that_is_no_vector_in_memory(compiled: Loops) -> None:
    data, state = quantized(8)
    x = inputs(4, torch.float32)
    transposed = x.T.contiguous().T
    for some in (x[:1], x):
        found = nf4.product(transposed[: len(some)], data, state, None)
        assert found is not None and torch.equal(found, nf4.product(some, data, state, None))  # type: ignore[arg-type]
