"""A matrix of 4 bits times a vector: one rounding from exact by every way that the processor has, of any shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import equal_by_threads, read_together, read_wide, there
from zamba_compat.cpu.native import team
from zamba_compat.cpu.native.quantized import Loops, Quantized, loops

SECOND = 256  # scales that share one, as bitsandbytes has it


@pytest.fixture(params=["one by one", "together"])
def loop(request: pytest.FixtureRequest, wide: bool, monkeypatch: pytest.MonkeyPatch) -> Loops:
    read_together(request.param == "together", monkeypatch)
    return there(loops())


@pytest.fixture(params=[False, True], ids=["AVX2", "AVX-512"])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    read_wide(request.param, monkeypatch)
    return bool(request.param)


def made(rows: int, columns: int, block: int, nested: bool) -> tuple[Quantized, Tensor]:
    """A matrix, and its weights in float64."""
    generator = torch.Generator().manual_seed(rows + columns)
    data = torch.randint(256, (rows * columns // 2, 1), dtype=torch.uint8, generator=generator)
    count = rows * columns // block
    state: Any = SimpleNamespace(shape=(rows, columns), blocksize=block, nested=nested, state2=None)
    state.code = torch.randn(16, generator=generator)
    if nested:
        state.absmax = torch.randint(256, (count,), dtype=torch.uint8, generator=generator)
        second = torch.rand(-(-count // SECOND), generator=generator)
        state.state2 = SimpleNamespace(
            absmax=second, code=torch.randn(256, generator=generator).sort().values, blocksize=SECOND
        )
        state.offset = 0.25
        scales = state.state2.code[state.absmax.int()] * second.repeat_interleave(SECOND)[:count] + state.offset
    else:
        scales = state.absmax = torch.rand(count, generator=generator)
    codes = torch.stack((data[:, 0] >> 4, data[:, 0] & 15), -1).int().view(rows, columns)
    return Quantized(data, state), state.code[codes].double() * scales.double().view(rows, -1).repeat_interleave(
        block, 1
    )


def product(loop: Loops, matrix: Quantized, x: Tensor) -> Tensor:
    out = torch.full((matrix.rows,), torch.nan, dtype=x.dtype)
    if x.dtype == torch.float32:
        loop.product(matrix, x, out)
    else:
        loop.tokens(matrix, x[None], torch.full((1, matrix.columns), torch.nan), out[None])
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["scales", "nested"])
@pytest.mark.parametrize(
    ("rows", "columns", "block"),
    [
        (1, 64, 64),  # less than AVX-512 reads at once
        (4, 128, 64),
        (7, 192, 64),
        (33, 576, 192),
        (5, 3 * 4096, 4096),
        (3, 64 * 257, 64),  # more scales than are made at once
        (6, 128 * 300, 128),
        (2, 64 * 600, 64 * 300),
        (9, 8192, 64),  # rows that begin within what shares a second scale
    ],
)
def test_one_rounding_from_exact(
    loop: Loops, rows: int, columns: int, block: int, nested: bool, dtype: torch.dtype
) -> None:
    matrix, weight = made(rows, columns, block, nested)
    x = torch.randn(columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact, found = weight @ x.double(), product(loop, matrix, x).double()
    sums = 2e-6 * (weight.abs() @ x.double().abs())
    assert ((found - exact).abs() <= (1.01 * 2**-8 * exact.abs() if dtype == torch.bfloat16 else 0) + sums).all()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 11])
@pytest.mark.parametrize(("rows", "columns"), [(1, 192), (2, 128), (7, 320)])
def test_tokens_are_each_as_alone(loop: Loops, rows: int, columns: int, tokens: int) -> None:
    matrix, _ = made(rows, columns, 64, True)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    found = torch.full((tokens, rows), torch.nan).bfloat16()
    loop.tokens(matrix, x, torch.empty(tokens, columns), found)
    assert torch.equal(found, torch.stack([product(loop, matrix, token) for token in x]))


@pytest.mark.parametrize("nested", [False, True], ids=["scales", "nested"])
@pytest.mark.parametrize(("rows", "columns", "block"), [(1, 64, 64), (9, 192, 192), (70, 8192, 64), (5, 8192, 4096)])
def test_rows_written_out(loop: Loops, wide: bool, rows: int, columns: int, block: int, nested: bool) -> None:
    """Rounded once, as PyTorch rounds; from any row on."""
    if not wide:
        pytest.skip("AVX-512 alone")
    matrix, weight = made(rows, columns, block, nested)
    wanted = weight.float().bfloat16()  # products of two numbers of 24 bits are exact in float64
    for start in {0, rows // 2}:
        out = torch.full((rows - start, columns), torch.nan).bfloat16()
        assert equal_by_threads(lambda start=start, out=out: (loop.write(matrix, start, out), out.clone())[1])  # type: ignore[misc]
        assert torch.equal(out, wanted[start:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scales_that_are_no_number_are_written_out_as_they_are(loop: Loops, wide: bool, value: float) -> None:
    if not wide:
        pytest.skip("AVX-512 alone")
    matrix, weight = made(3, 128, 64, False)
    matrix._kept[1][2] = value  # the scales
    out = torch.empty(3, 128).bfloat16()
    loop.write(matrix, 0, out)
    assert torch.equal(out.isfinite(), torch.arange(384).view(3, 128) // 64 != 2)
    assert torch.equal(out[0], weight.float().bfloat16()[0])


@pytest.mark.parametrize("column", [0, 63, 64, 127, 128, 191])
def test_what_is_no_number_stays_none(loop: Loops, column: int) -> None:
    matrix, _ = made(5, 192, 64, False)
    x = torch.ones(192)
    x[column] = torch.nan
    assert product(loop, matrix, x).isnan().all()


def test_any_number_of_threads(loop: Loops) -> None:
    """How a row is summed does not depend on which others are read with it."""
    matrix, _ = made(77, 320, 64, True)
    x = torch.randn(320).bfloat16()
    assert equal_by_threads(lambda: product(loop, matrix, x))


@pytest.mark.parametrize(("held", "expected"), [("avx2", False), ("default", False), ("avx512", True), ("", True)])
def test_where_pytorch_is_kept_from_it(held: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    there(loops())
    read_wide(True, monkeypatch)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", held)
    found = team.team()
    assert found is not None and bool(found.wide) == expected
