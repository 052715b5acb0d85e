"""Products with tiles: one rounding from exact, of any number of rows and features, and of parts of wider matrices."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from support.native import equal_by_threads, is_off
from zamba_compat.cpu import gemv
from zamba_compat.cpu.native import tiles
from zamba_compat.cpu.native.tiles import Loops

SIZES = [
    *[(1, 1, 32), (2, 31, 64), (33, 33, 32), (32, 64, 96), (16, 100, 1024), (17, 65, 1056), (100, 300, 2080)],
    *[(512, 40, 64), (513, 32, 32), (1100, 129, 2112)],  # more rows than are taken at a time
]


@pytest.fixture
def loops() -> Loops:
    found = tiles.loops()
    if found is None:
        assert not gemv.has_tiles()
        pytest.skip("no tiles here")
    return found


def normal(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size))).bfloat16()


def product(loops: Loops, x: Tensor, weight: Tensor, to: Tensor | None = None) -> Tensor:
    out = torch.full((len(x), len(weight)), torch.nan).bfloat16() if to is None else to.clone()
    room = torch.full((loops.room(*x.shape),), 0xFF, dtype=torch.uint8)  # NaN, however it is read
    loops.product(x, weight, room, out, add=to is not None)
    return out


@pytest.mark.parametrize("size", SIZES)
def test_one_rounding_from_exact(loops: Loops, size: tuple[int, int, int]) -> None:
    rows, features, columns = size
    x, weight, to = normal(rows, columns), normal(features, columns), normal(rows, features)
    near_zero = 2e-6 * (x.double().abs() @ weight.double().abs().T).max()  # where sums cancel
    for before in (None, to):
        exact = x.double() @ weight.double().T + (0 if before is None else before.double())
        found = product(loops, x, weight, before)
        assert ((found.double() - exact).abs() <= 1.01 * 2**-8 * exact.abs() + near_zero).all()


def test_parts_of_wider_matrices(loops: Loops) -> None:
    """Which begin anywhere; what lies beside them is neither read nor written."""
    x, weight = normal(40, 64), normal(45, 64)
    wide_x, wide_weight = torch.full((40, 71), torch.nan).bfloat16(), torch.full((45, 67), torch.nan).bfloat16()
    wide_x[:, 3:67], wide_weight[:, 1:65] = x, weight
    out = torch.full((42, 50), 7.0).bfloat16()
    room = torch.empty(loops.room(40, 64), dtype=torch.uint8)
    loops.product(wide_x[:, 3:67], wide_weight[:, 1:65], room, out[1:41, 2:47], add=False)
    assert torch.equal(out[1:41, 2:47], product(loops, x, weight))
    out[1:41, 2:47] = 7
    assert (out == 7).all()


def test_any_number_of_threads(loops: Loops) -> None:
    x, weight = normal(70, 1056), normal(1000, 1056)
    assert equal_by_threads(lambda: product(loops, x, weight))


@pytest.mark.parametrize("limit", [1, 2])
def test_fewer_threads_than_asked_for(loops: Loops, limit: int) -> None:
    """Which take the rows that others would have."""
    program = """if True:
        import torch
        from zamba_compat.cpu.native.tiles import loops
        torch.set_num_threads(7)
        x, weight = torch.randn(70, 1056).bfloat16(), torch.randn(1000, 1056).bfloat16()
        out, room = torch.full((70, 1000), torch.nan).bfloat16(), torch.empty(loops().room(70, 1056), dtype=torch.uint8)
        loops().product(x, weight, room, out, add=False)
        wanted = x.double() @ weight.double().T
        assert (out - wanted).norm() < 2**-8 * wanted.norm()
    """
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "OMP_THREAD_LIMIT": str(limit)})


def test_what_is_no_number_stays_where_it_is(loops: Loops) -> None:
    x, weight = torch.ones(34, 64).bfloat16(), torch.ones(35, 64).bfloat16()
    x[33, 63], weight[34, 0] = torch.nan, torch.inf
    found = product(loops, x, weight)
    assert found[33].isnan().all() and (found[:33, 34] == torch.inf).all()
    assert (found[:33, :34] == 64).all()


def test_switched_off(loops: Loops) -> None:
    assert is_off(tiles.loops)
