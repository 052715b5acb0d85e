"""bfloat16 matrices in 12 bits: not a bit is lost, and a change of one is noticed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from support.native import is_off, read_together, there
from zamba_compat.native import packed, team
from zamba_compat.native.packed import CHUNK, Loops, Packed

COLUMNS = 3 * CHUNK


@pytest.fixture(params=[False, True], ids=["one by one", "together"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loops:
    read_together(request.param, monkeypatch)
    return there(packed.loops())


def normal(rows: int, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).bfloat16()


def every_size() -> Tensor:
    """Rows of many orders of magnitude, and in each some that are too small for its codes."""
    weight = normal(40) * torch.logspace(-30, 30, 40)[:, None]
    weight[:, 5] *= 1e-9
    weight[3] = 0
    weight[4, ::2] = -0.0
    weight[:, 70] = 0
    return weight.bfloat16()


WEIGHTS = {
    "normal": normal(200),
    "one row": normal(1),
    "every size": every_size(),
    "two values": torch.where(normal(7) > 0, 3.0, -(2.0**-100)).bfloat16()[:, :CHUNK],
    "every exponent": (torch.arange(-128, 128).repeat(300) * 128).to(torch.int16).view(torch.bfloat16).view(-1, 256),
}
LOSSLESS = ("normal", "one row", "every size")


def unpacked(loops: Loops, copy: Packed) -> Tensor:
    """Every weight, as the product with a unit vector."""
    columns = [torch.full((copy.rows,), torch.nan) for _ in range(copy.columns)]
    for unit, column in zip(torch.eye(copy.columns), columns, strict=True):
        loops.product(copy, unit.contiguous(), column)
    return torch.stack(columns, 1)


def bits(weight: Tensor) -> Tensor:
    return weight.contiguous().view(torch.int16)


def some(copy: Packed | None) -> Packed:
    assert copy is not None
    return copy


@pytest.mark.parametrize("name", LOSSLESS)
def test_no_weight_is_lost(loops: Loops, name: str) -> None:
    weight = WEIGHTS[name]
    copy = some(loops.pack(weight))
    assert torch.equal(unpacked(loops, copy), weight.float())
    assert loops.same(copy, weight)
    assert weight.nbytes * 0.75 < copy.nbytes < weight.nbytes * 0.75 + len(weight) * 10 + weight.numel() // 10


@pytest.mark.parametrize("name", ["two values", "every exponent"])
def test_weights_that_would_not_gain(loops: Loops, name: str) -> None:
    assert loops.pack(WEIGHTS[name]) is None


def test_a_part_of_the_columns(loops: Loops) -> None:
    weight = normal(50)
    for part in (weight[:, :CHUNK], weight[:, CHUNK:], weight[10:20, CHUNK : 2 * CHUNK]):
        copy = some(loops.pack(part))
        assert torch.equal(unpacked(loops, copy), part.float())
        assert loops.same(copy, part) and not loops.same(copy, weight) and not loops.same(copy, weight[:, :CHUNK] + 1)


def test_any_change_is_noticed(loops: Loops) -> None:
    """Of each bit, also of listed weights and of zeros, to which a sign of zero counts."""
    weight = every_size()
    copy = some(loops.pack(weight))
    words = weight.view(torch.int16)
    for row in (0, 1, 3, 4, 20, 39):
        for column in (0, 4, 5, 63, 64, 70, COLUMNS - 1):
            for bit in range(16):
                before = words[row, column].clone()
                words[row, column] ^= (1 << bit) if bit < 15 else -(1 << 15)
                noticed = not loops.same(copy, weight)
                assert noticed, (row, column, bit)
                assert not loops.same(copy, weight, row) and loops.same(copy, weight, (row + 1) % 40)
                words[row, column] = before
    assert loops.same(copy, weight)


def test_weights_that_take_listed_ones_places_are_noticed(loops: Loops) -> None:
    weight = every_size()
    copy = some(loops.pack(weight))
    weight[:, 5] = 0
    assert not loops.same(copy, weight)
    weight = every_size()
    weight[:, [5, 6]] = weight[:, [6, 5]]
    assert not loops.same(copy, weight)


@pytest.mark.parametrize("shape", [(1, 64), (33, 4096), (300, 512)])
def test_products(loops: Loops, shape: tuple[int, int]) -> None:
    weight, x, out = normal(*shape), torch.randn(shape[1]), torch.full((shape[0],), torch.nan)
    loops.product(some(loops.pack(weight)), x, out)
    wanted = weight.double() @ x.double()
    assert (out - wanted).abs().max() < 1e-6 * (weight.double().abs() @ x.double().abs()).max()


@pytest.mark.parametrize("rank", [None, 5, 64])
@pytest.mark.parametrize("with_plus", [False, True])
@pytest.mark.parametrize("wider", [0, 64])
def test_tokens(loops: Loops, rank: int | None, with_plus: bool, wider: int) -> None:
    """In bfloat16 with what is added, each sum rounded once; an adapter may see more of x than the matrix."""
    weight, x = normal(90), normal(1, COLUMNS + wider)[0]
    plus = torch.randn(90) if with_plus else None
    adapter = None if rank is None else (normal(rank, len(x)) / 10, normal(90, rank) / 10)
    exact = weight.double() @ x[:COLUMNS].double()
    if plus is not None:
        exact += -1.5 * plus.double()
    if adapter is not None:
        exact += adapter[1].double() @ (adapter[0].double() @ x.double()).bfloat16().double()
    out, room = torch.empty(90).bfloat16(), torch.full((loops.token_room(len(x), rank or 0),), torch.nan)
    loops.token(some(loops.pack(weight)), x, room, out, plus=plus, times=-1.5, adapter=adapter)
    assert ((out.double() - exact).abs() <= 1.01 * 2**-8 * exact.abs() + 1e-2 * (rank is not None)).all()


def test_infinite_weights_are_what_they_are(loops: Loops) -> None:
    weight = normal(300)
    weight[5, 9], weight[6, 9] = torch.inf, torch.nan
    copy = some(loops.pack(weight))
    x, out = torch.ones(COLUMNS), torch.empty(300)
    loops.product(copy, x, out)
    assert out[5] == torch.inf and out[6].isnan() and out[torch.arange(300) > 6].isfinite().all()
    # A NaN is not listed and compared as what it is, bit by bit.
    assert loops.same(copy, weight)


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_any_number_of_threads(loops: Loops, limit: int) -> None:
    program = """if True:
        import sys, torch
        from zamba_compat.native import library
        from zamba_compat.native.packed import loops
        library().zamba_compat_together = lambda: int(sys.argv[1])
        torch.manual_seed(0)  # of a row's 128 random weights two may be listed, which is too many to be packed
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for rows in (1, 2, 5, 100):
                weight, x, out = torch.randn(rows, 128).bfloat16(), torch.randn(128), torch.full((rows,), torch.nan)
                copy = loops().pack(weight)
                loops().product(copy, x, out)
                assert torch.allclose(out, weight.float() @ x, atol=1e-4), (threads, rows)
                assert loops().same(copy, weight)
                weight[rows - 1] += 1
                assert not loops().same(copy, weight), (threads, rows)
    """
    threads = team.team()
    assert threads is not None
    command = [sys.executable, "-c", program, str(threads.together)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_THREAD_LIMIT": str(limit)})


def test_what_does_not_fit() -> None:
    weight = normal(8, 2 * CHUNK)
    assert Loops.fit(weight) and Loops.fit(weight[:, CHUNK:]) and Loops.fit(weight[2:3])
    for other in (
        weight.float(),
        weight[:, 1:],
        weight[:, : CHUNK // 2],
        weight.T,
        weight[0],
        weight[:0],
        weight.half(),
    ):
        assert not Loops.fit(other)
    assert not Loops.fit(torch.empty(8, CHUNK, dtype=torch.bfloat16, device="meta"))


def test_switched_off() -> None:
    assert is_off(packed.loops)
