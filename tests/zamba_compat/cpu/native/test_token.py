"""One token in C: the recurrence in float64, whatever the shapes, and nothing that it does not take."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.native import is_off, there
from zamba_compat.cpu.native import rows, token
from zamba_compat.cpu.native.token import Loop, Weights, fits
from zamba_compat.mamba2 import recurrence

TAPS, EPSILON = 4, 1e-5


class Shape(NamedTuple):
    heads: int = 6
    head_dim: int = 10
    d_state: int = 64
    groups: int = 1
    batch: int = 1
    norm_groups: int = 1

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        return self.inner + 2 * self.groups * self.d_state


@pytest.fixture
def loop() -> Loop:
    return there(token.loop())


class Case:
    """Random weights, states and a token; `wanted` computes in float64."""

    def __init__(self, shape: Shape, dtype: torch.dtype, *, bias: bool = True, norm: bool = True) -> None:
        random = torch.Generator().manual_seed(shape.batch)

        def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(*size, generator=random).to(dtype)

        self.shape, self.dtype = shape, dtype
        self.weights = Weights(
            kernel=normal(shape.channels, TAPS),
            bias=normal(shape.channels) if bias else None,
            dt_bias=normal(shape.heads, dtype=torch.float32) - 2,  # some checkpoints keep these wide
            A_log=normal(shape.heads, dtype=torch.float32),
            D=normal(shape.heads),
            norm=normal(shape.inner) if norm else None,
        )
        self.projected = normal(shape.batch, shape.inner + shape.channels + shape.heads)
        self.earlier = normal(shape.batch, shape.channels, TAPS)
        self.state = normal(shape.batch, shape.heads, shape.head_dim, shape.d_state, dtype=torch.float32)

    @property
    def norm_group(self) -> int | None:
        return None if self.weights.norm is None else self.shape.inner // self.shape.norm_groups

    def wanted(self, limit: tuple[float, float] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """y, the later inputs, and the later state."""
        shape, wide = self.shape, torch.float64
        gate, xbc, dt = self.projected.to(wide).split([shape.inner, shape.channels, shape.heads], -1)
        kernel, bias, dt_bias, a_log, d, norm = (None if t is None else t.to(wide) for t in self.weights)
        assert kernel is not None and dt_bias is not None and a_log is not None
        later = torch.cat([self.earlier[..., 1:].to(wide), xbc[..., None]], -1)
        convolved = F.silu((later * kernel).sum(-1) + (0 if bias is None else bias))
        bc = shape.groups * shape.d_state
        x, b, c = convolved.split([shape.inner, bc, bc], -1)
        dt = F.softplus(dt + dt_bias)
        dt = dt if limit is None else dt.clamp(*limit)
        x = x.view(-1, shape.heads, shape.head_dim)
        b, c = (t.view(-1, shape.groups, shape.d_state) for t in (b, c))
        y, state = recurrence.step(x, dt, -a_log.exp(), b, c, D=d, state=self.state.to(wide))
        y = y.reshape(shape.batch, shape.inner)
        if norm is not None:
            grouped = (y * F.silu(gate)).unflatten(-1, (shape.norm_groups, -1))
            scale = (grouped.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
            y = norm * (grouped * scale).flatten(-2)
        return y, later, state

    def run(self, loop: Loop, limit: tuple[float, float] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        assert fits(self.weights, self.projected, shape.groups, self.earlier, self.state, self.norm_group)
        later, state = torch.full_like(self.earlier, torch.nan), self.state.clone()
        room = torch.full((shape.batch, shape.channels), torch.nan)
        out = torch.full((shape.batch, shape.inner), torch.nan, dtype=self.dtype)
        given: dict[str, Any] = {"groups": shape.groups, "state": state, "room": room, "out": out, "limit": limit}
        if self.norm_group is not None:
            given |= {"norm_group": self.norm_group, "epsilon": EPSILON}
        loop.step(self.weights, self.projected, earlier=self.earlier, later=later, **given)
        again = self.earlier.clone()  # in place
        given["state"] = self.state.clone()
        loop.step(self.weights, self.projected, earlier=again, later=again, **given)
        assert torch.equal(later, again)
        assert torch.allclose(state, given["state"], rtol=0, atol=0, equal_nan=True)
        return (room[:, : shape.inner] if self.norm_group is None else out), later, state


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert (found.double() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(d_state=40),
        Shape(d_state=3, head_dim=1),
        Shape(groups=2, batch=3),
        Shape(groups=3, norm_groups=2, batch=2, d_state=33),
        Shape(heads=64, head_dim=64, d_state=64),
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [None, (0.01, 0.1)])
def test_it_is_the_recurrence(loop: Loop, shape: Shape, dtype: torch.dtype, limit: tuple[float, float] | None) -> None:
    case = Case(shape, dtype)
    for found, wanted, tolerance in zip(
        case.run(loop, limit), case.wanted(limit), (1e-6 if dtype == torch.float32 else 2**-8, 0, 1e-6), strict=True
    ):
        if tolerance:
            assert_close(found, wanted, tolerance)
        else:
            assert torch.equal(found.double(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_bias_and_norm(loop: Loop, dtype: torch.dtype) -> None:
    """Without a norm y comes out ungated, in float32."""
    case = Case(Shape(batch=2, groups=2), dtype, bias=False, norm=False)
    found, wanted = case.run(loop), case.wanted()
    assert_close(found[0], wanted[0], 1e-6)
    assert_close(found[2], wanted[2], 1e-6)


@pytest.mark.parametrize(
    "shape", [Shape(), Shape(d_state=3, head_dim=1), Shape(groups=3, norm_groups=2, d_state=33)], ids=str
)
@pytest.mark.parametrize("hidden_size", [10, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_with_its_projections(loop: Loop, shape: Shape, hidden_size: int, bias: bool) -> None:
    """What the three parts one by one are, each rounded as PyTorch rounds it."""
    there(rows.loop())
    case = Case(shape, torch.bfloat16, bias=bias)
    in_proj, out_proj = torch.randn(case.projected.shape[1], hidden_size), torch.randn(hidden_size, shape.inner)
    in_proj, out_proj, x = in_proj.bfloat16(), out_proj.bfloat16(), torch.randn(hidden_size).bfloat16()
    case.projected = F.linear(x, in_proj)[None]
    y, later, state = case.wanted((0.01, 0.1))
    sizes = {"groups": shape.groups, "norm_group": case.norm_group, "epsilon": EPSILON}
    mixer = token.Mixer(case.weights, (shape.heads, shape.head_dim, shape.d_state), in_proj, out_proj, **sizes)
    out, moved, room = torch.empty(hidden_size).bfloat16(), case.state.clone(), torch.full((mixer.room,), torch.nan)
    conv = case.earlier.clone()
    loop.whole(mixer, x, earlier=conv, later=conv, state=moved, room=room, out=out, limit=(0.01, 0.1))
    assert_close(out, y.bfloat16().double()[0] @ out_proj.double().T, 2**-7)
    # in_proj's sums are rounded from another order of adding.
    assert_close(moved, state, 2**-8)
    assert_close(conv, later, 2**-8)


@pytest.mark.parametrize("step", [-1e4, -30.0, 19.9, 20.1, 1e4])
def test_steps_of_any_size(loop: Loop, step: float) -> None:
    case = Case(Shape(), torch.float32)
    case.projected[:, -case.shape.heads :] = step
    for found, wanted in zip(case.run(loop), case.wanted(), strict=True):
        assert_close(found, wanted, 1e-6)


@pytest.mark.parametrize("limit", [None, (0.01, 0.1)])
def test_what_is_no_number_stays_none(loop: Loop, limit: tuple[float, float] | None) -> None:
    case = Case(Shape(norm_groups=2), torch.float32)
    case.projected[:, -1] = math.nan  # the last head's step
    y, _, state = case.run(loop, limit)
    half = case.shape.inner // 2
    assert y[:, :half].isfinite().all() and y[:, half:].isnan().all()
    assert state[:, :-1].isfinite().all() and state[:, -1].isnan().all()


def test_what_it_does_not_take() -> None:
    case = Case(Shape(groups=2, batch=2), torch.bfloat16)
    weights, shape = case.weights, case.shape
    usual = {"projected": case.projected, "groups": 2, "earlier": case.earlier, "state": case.state}

    def taken(weights: Weights = weights, norm_group: int | None = case.norm_group, **other: Any) -> bool:
        return fits(weights, norm_group=norm_group, **{**usual, **other})

    assert taken() and taken(weights._replace(bias=None)) and taken(weights._replace(norm=None), None)
    assert not taken(projected=case.projected.half()) and not taken(projected=case.projected.float())
    assert not taken(projected=case.projected[:1]) and not taken(projected=case.projected[:, 1:])
    assert not taken(groups=4) and not taken(groups=1)
    assert not taken(earlier=case.earlier[..., 1:]) and not taken(earlier=case.earlier.mT.contiguous().mT)
    assert not taken(state=case.state.bfloat16()) and not taken(state=case.state.mT.contiguous().mT)
    assert not taken(state=case.state[:0], projected=case.projected[:0], earlier=case.earlier[:0])
    assert not taken(norm_group=0) and not taken(norm_group=shape.inner - 1) and not taken(norm_group=None)
    assert not taken(weights._replace(kernel=weights.kernel[1:])) and not taken(weights._replace(D=weights.D.double()))
    assert not taken(weights._replace(dt_bias=weights.dt_bias[1:])) and not taken(weights._replace(norm=weights.D))
    assert not taken(weights._replace(A_log=torch.empty(shape.heads, device="meta")))


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_any_number_of_threads(loop: Loop, limit: int) -> None:
    program = """if True:
        import sys
        import torch
        from zamba_compat.cpu.native.token import loop  # before the tests' own folder of that name
        sys.path.extend(sys.argv[1:])
        from test_token import Case, Shape
        for heads in (1, 2, 5):
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(Case(Shape(heads=heads, batch=2), torch.float32).run(loop()))
                for found, first in zip(results[-1], results[0], strict=True):
                    assert torch.equal(found, first), (threads, heads)
    """
    here = Path(__file__).parent
    command = [sys.executable, "-c", program, str(here), str(here.parents[2])]
    subprocess.run(command, check=True, env={**os.environ, "OMP_THREAD_LIMIT": str(limit)})


def test_switched_off() -> None:
    assert is_off(token.loop)
