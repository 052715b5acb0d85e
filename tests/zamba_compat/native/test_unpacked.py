"""Packed 4-bit weights written out: every number the code's times its scale, rounded once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from support.native import equal_by_threads, is_off, there
from zamba_compat.native import unpacked
from zamba_compat.native.unpacked import Loop, fits
from zamba_compat.packed_4bit import packed_bytes

CODE = torch.linspace(-1, 1, 16)


@pytest.fixture
def loop() -> Loop:
    return there(unpacked.loop())


def case(rows: int, columns: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """The packed layout, scales, and the numbers that are wanted, in float32."""
    random = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 16, (rows, columns), generator=random)
    scale = torch.rand(rows, columns // block, generator=random) * 10
    plain = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    return packed_bytes(plain), scale, CODE[codes] * scale.repeat_interleave(block, 1)


@pytest.mark.parametrize("rows", [1, 15, 16, 32, 33, 100])
@pytest.mark.parametrize(("columns", "block"), [(64, 64), (256, 64), (384, 128), (48, 16)])
def test_every_number(loop: Loop, rows: int, columns: int, block: int) -> None:
    data, scale, wanted = case(rows, columns, block)
    room = torch.full((rows + 1, columns), math.nan).bfloat16()
    assert fits(data, CODE, scale, room[:rows])
    loop.write(data, CODE, scale, room[:rows])
    assert torch.equal(room[:rows], wanted.bfloat16())
    assert room[rows:].isnan().all(), "behind its end"


def test_what_is_no_number(loop: Loop) -> None:
    data, scale, wanted = case(40, 128, 64)
    scale[3, 1], scale[39, 0] = math.nan, math.inf
    out = torch.empty(40, 128).bfloat16()
    loop.write(data, CODE, scale, out)
    assert out[3, 64:].isnan().all() and out[39, :64].isinf().all()
    out[3, 64:], out[39, :64] = wanted[3, 64:], wanted[39, :64]
    assert torch.equal(out, wanted.bfloat16())


def test_any_number_of_threads(loop: Loop) -> None:
    data, scale, wanted = case(200, 64, 64)

    def written() -> Tensor:
        out = torch.empty(200, 64).bfloat16()
        loop.write(data, CODE, scale, out)
        return out

    assert equal_by_threads(written) and torch.equal(written(), wanted.bfloat16())


def test_what_it_does_not_take() -> None:
    data, scale, _ = case(40, 128, 64)
    out = torch.empty(40, 128).bfloat16()
    assert fits(data, CODE, scale, out)
    assert not fits(data[:32], CODE, scale, out) and not fits(data, CODE[:8], scale, out)
    assert not fits(data, CODE, scale[:39], out) and not fits(data, CODE, scale, out[:, :64])
    assert not fits(data, CODE, torch.rand(40, 16), out), "fewer columns than are written together"
    assert not fits(data, CODE.double(), scale, out) and not fits(data, CODE, scale.bfloat16(), out)
    assert not fits(data, CODE, scale, out.float()) and not fits(data.view(torch.int8), CODE, scale, out)
    assert not fits(data.to("meta"), CODE, scale, out)


def test_switched_off(loop: Loop) -> None:
    assert is_off(unpacked.loop)
