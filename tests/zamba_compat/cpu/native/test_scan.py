"""A sequence in C: the recurrence in float64, whatever the shapes, and nothing that it does not take."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.native import equal_by_threads, is_off, there
from zamba_compat.cpu import gemv
from zamba_compat.cpu.native import scan
from zamba_compat.cpu.native.scan import LEAST_TOKENS, MOST_STATE, MOST_TAPS, Loop, Weights, fits, fits_chunks

EPSILON = 1e-5


class Shape(NamedTuple):
    seq: int = 37
    heads: int = 6
    head_dim: int = 10
    d_state: int = 24
    groups: int = 1
    taps: int = 4
    norm_groups: int = 1

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        return self.inner + 2 * self.groups * self.d_state


SHAPES = [
    *[Shape(), Shape(seq=1), Shape(seq=2), Shape(seq=3, taps=2), Shape(taps=1), Shape(taps=MOST_TAPS)],
    *[Shape(heads=4, head_dim=64, d_state=64), Shape(heads=4, head_dim=48, d_state=MOST_STATE, groups=2)],
    *[Shape(groups=3, norm_groups=2, d_state=3, head_dim=1), Shape(head_dim=17, norm_groups=3)],
    *[Shape(seq=128), Shape(seq=129, groups=2), Shape(seq=300)],  # more than are taken at a time
]


IN_CHUNKS = [
    *[Shape(seq, heads=3, head_dim=64, d_state=128, norm_groups=2) for seq in (1, 2, 17, 63, 64, 65, 128)],
    *[Shape(129, heads=4, head_dim=64, d_state=64, groups=2), Shape(300, heads=1, head_dim=32, d_state=32)],
    *[Shape(77, heads=6, head_dim=32, d_state=MOST_STATE, groups=3), Shape(1000, heads=2, head_dim=64, d_state=96)],
]


@pytest.fixture
def loop() -> Loop:
    return there(scan.loop())


@pytest.fixture(params=["chunks", "vectors"])
def chunks(request: pytest.FixtureRequest) -> Loop:
    """With tiles, or with AVX512-BF16."""
    found: Loop | None = getattr(scan, request.param)()
    if found is None:
        assert not gemv.has_tiles()
        pytest.skip("no such instructions here")
    return found


class Case:
    """Random weights, states and a sequence; `wanted` computes in float64, token by token."""

    def __init__(self, shape: Shape, dtype: torch.dtype, *, bias: bool = True) -> None:
        random = torch.Generator().manual_seed(shape.seq)

        def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(*size, generator=random).to(dtype)

        self.shape, self.dtype = shape, dtype
        self.weights = Weights(
            kernel=normal(shape.taps, shape.channels),
            bias=normal(shape.channels) if bias else None,
            A=-normal(shape.heads).exp(),
            D=normal(shape.heads),
            norm=normal(shape.inner),
            norm_group=shape.inner // shape.norm_groups,
            epsilon=EPSILON,
        )
        self.projected = normal(shape.seq, shape.inner + shape.channels + 5, dtype=dtype)
        self.dt = F.softplus(normal(shape.seq, shape.heads) - 2)
        self.earlier = normal(shape.channels, shape.taps, dtype=dtype)
        self.state = normal(shape.heads, shape.head_dim, shape.d_state)

    @property
    def gate(self) -> Tensor:
        return self.projected[:, : self.shape.inner]

    @property
    def xbc(self) -> Tensor:
        return self.projected[:, self.shape.inner : self.shape.inner + self.shape.channels]

    def wanted(self, goes_on: bool) -> tuple[Tensor, Tensor]:
        """What the norm makes of y, and the state."""
        shape, wide = self.shape, torch.float64
        kernel, a, d, norm = (getattr(self.weights, name).to(wide) for name in ("kernel", "A", "D", "norm"))
        before = self.earlier.to(wide).T[1:] if goes_on else torch.zeros(shape.taps - 1, shape.channels, dtype=wide)
        inputs = torch.cat([before, self.xbc.to(wide)])
        state = self.state.to(wide) if goes_on else torch.zeros_like(self.state, dtype=wide)
        ys = []
        for token, step in enumerate(self.dt.to(wide)):
            convolved = (inputs[token : token + shape.taps] * kernel).sum(0)
            convolved = F.silu(convolved if self.weights.bias is None else convolved + self.weights.bias.to(wide))
            bc = shape.groups * shape.d_state
            x, b, c = convolved.split([shape.inner, bc, bc])
            x = x.view(shape.heads, shape.head_dim)
            b, c = (t.view(shape.groups, -1).repeat_interleave(shape.heads // shape.groups, 0) for t in (b, c))
            state = state * (step * a).exp()[:, None, None] + (x * step[:, None])[..., None] * b[:, None]
            ys.append(((state * c[:, None]).sum(-1) + x * d[:, None]).view(-1))
        gated = (torch.stack(ys) * F.silu(self.gate.to(wide))).unflatten(-1, (shape.norm_groups, -1))
        scale = (gated.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
        return (gated * scale).flatten(-2) * norm, state

    def run(self, loop: Loop, goes_on: bool) -> tuple[Tensor, Tensor]:
        shape = self.shape
        batched = (t[None] for t in (self.xbc, self.gate, self.dt))
        earlier = self.earlier if goes_on else None
        assert fits(self.weights, *batched, shape.groups, None if earlier is None else earlier[None], self.state[None])
        state = self.state.clone() if goes_on else torch.full_like(self.state, math.nan)
        room = torch.full((loop.room(self.weights, shape.groups, state),), math.nan)
        out = torch.full((shape.seq, shape.inner), math.nan, dtype=self.dtype)
        given: dict[str, Any] = {"groups": shape.groups, "earlier": earlier, "state": state, "goes_on": goes_on}
        loop.run(self.weights, self.xbc, self.gate, self.dt, room=room, out=out, **given)
        return out, state


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert (found.double() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("goes_on", [False, True], ids=["new", "goes on"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_recurrence(loop: Loop, shape: Shape, goes_on: bool, dtype: torch.dtype) -> None:
    case = Case(shape, dtype, bias=shape.seq % 2 == 1)
    (y, state), (wanted_y, wanted_state) = case.run(loop, goes_on), case.wanted(goes_on)
    assert_close(y, wanted_y, 1e-6 if dtype == torch.float32 else 2**-8)
    assert_close(state, wanted_state, 1e-6)


def test_in_parts_it_is_the_same(loop: Loop) -> None:
    """The first inputs of a part are what `earlier` holds."""
    case = Case(Shape(seq=50), torch.float32)
    whole, state = case.run(loop, True)
    for first, last in ((0, 20), (20, 21), (21, 50)):
        part = Case(Shape(seq=last - first), torch.float32)
        part.weights, part.projected, part.dt = case.weights, case.projected[first:last], case.dt[first:last]
        part.earlier, part.state = case.earlier, case.state
        y, case.state = part.run(loop, True)
        assert torch.equal(y, whole[first:last])
        inputs = torch.cat([case.earlier.T, part.xbc])[-case.shape.taps :]
        case.earlier = inputs.T.contiguous()
    assert torch.equal(case.state, state)


@pytest.mark.parametrize("size", [1e-30, 30.0, 90.0, 1e3])
def test_numbers_of_any_size(loop: Loop, size: float) -> None:
    """Gates and inputs where exp overflows, and steps after which nothing is left."""
    case = Case(Shape(), torch.float32)
    case.projected.mul_(size)
    case.dt[3] = 1e4
    (y, state), (wanted_y, wanted_state) = case.run(loop, True), case.wanted(True)
    assert_close(y, wanted_y, 2e-6)
    assert_close(state, wanted_state, 2e-6)


def test_what_is_no_number_stays_none(loop: Loop) -> None:
    case = Case(Shape(norm_groups=2), torch.bfloat16)
    case.dt[7, -1] = math.nan  # of the last head
    y, state = case.run(loop, False)
    half = case.shape.inner // 2
    assert y[:7].isfinite().all() and y[:, :half].isfinite().all() and y[7:, half:].isnan().all()
    assert state[:-1].isfinite().all() and state[-1].isnan().all()


def test_any_number_of_threads(loop: Loop) -> None:
    case = Case(Shape(), torch.float32)
    assert equal_by_threads(lambda: torch.cat([part.flatten() for part in case.run(loop, True)]))


def test_what_it_does_not_take() -> None:
    case = Case(Shape(groups=2), torch.bfloat16)
    usual: dict[str, Any] = {name: getattr(case, name)[None] for name in ("xbc", "gate", "dt", "earlier", "state")}

    def taken(weights: Weights = case.weights, groups: int = 2, **other: Any) -> bool:
        return fits(weights, groups=groups, **{**usual, **other})

    assert taken() and taken(earlier=None) and taken(case.weights._replace(bias=None))
    for name, tensor in usual.items():
        assert not taken(**{name: tensor.to("meta")}), name
        assert not taken(**{name: tensor.to(torch.float16)}), name
        assert not taken(**{name: tensor[..., 1:]}), name
        assert not taken(**{name: tensor.as_subclass(type("Other", (Tensor,), {}))}), name
    assert not taken(xbc=usual["xbc"].float()) and not taken(gate=usual["gate"].float())
    assert not taken(state=usual["state"].mT.contiguous().mT) and not taken(earlier=usual["earlier"].mT.contiguous().mT)
    for name in ("kernel", "bias", "A", "D", "norm"):
        weight = getattr(case.weights, name)
        assert not taken(case.weights._replace(**{name: weight.bfloat16()})), name
        assert not taken(case.weights._replace(**{name: weight[..., 1:]})), name
    assert not taken(case.weights._replace(norm_group=7)) and not taken(case.weights._replace(norm_group=0))
    assert not taken(groups=4) and not taken(groups=1)
    large = Case(Shape(d_state=MOST_STATE + 1), torch.float32)
    assert not fits(large.weights, *(t[None] for t in (large.xbc, large.gate, large.dt)), 1, None, large.state[None])
    long = Case(Shape(taps=MOST_TAPS + 1), torch.float32)
    assert not fits(long.weights, *(t[None] for t in (long.xbc, long.gate, long.dt)), 1, None, long.state[None])


@pytest.mark.parametrize("goes_on", [False, True], ids=["new", "goes on"])
@pytest.mark.parametrize("shape", IN_CHUNKS, ids=str)
def test_chunks_are_the_recurrence(chunks: Loop, shape: Shape, goes_on: bool) -> None:
    """But for bfloat16's roundings: a chunk's of what is multiplied, and that of the result."""
    case = Case(shape, torch.bfloat16, bias=shape.seq % 2 == 1)
    assert fits_chunks(case.weights, case.xbc.new_empty(1, LEAST_TOKENS, 0), case.state)
    (y, state), (wanted_y, wanted_state) = case.run(chunks, goes_on), case.wanted(goes_on)
    assert_close(y, wanted_y, 1.5 * 2**-8 if shape.seq >= LEAST_TOKENS else 2**-7)
    assert_close(state, wanted_state, 2**-8)
    for token in {0, shape.seq // 2, shape.seq - 1}:  # nor is one of many wrong
        assert_close(y[token], wanted_y[token], 2**-6)


def test_chunks_keep_what_the_state_was_long_ago(chunks: Loop) -> None:
    """Steps so small that nothing decays: the state is summed in float32, not rounded chunk by chunk."""
    case = Case(Shape(2000, heads=2, head_dim=64, d_state=64), torch.bfloat16)
    case.dt.mul_(1e-6)
    _, state = case.run(chunks, True)
    _, wanted = case.wanted(True)
    assert_close(state, wanted, 1e-5)


@pytest.mark.parametrize("size", [1e-30, 30.0, 90.0, 1e3])
def test_numbers_of_any_size_in_chunks(chunks: Loop, size: float) -> None:
    case = Case(Shape(150, heads=2, head_dim=64, d_state=64), torch.bfloat16)
    case.projected.mul_(size)
    case.dt[3] = case.dt[70] = 1e4
    (y, state), (wanted_y, wanted_state) = case.run(chunks, True), case.wanted(True)
    assert_close(y, wanted_y, 2**-5)  # which a token or two are the most of
    assert_close(state, wanted_state, 2**-7)


def test_in_chunks_what_is_no_number_stays_none(chunks: Loop) -> None:
    """Its chunk and those after it, of its head."""
    case = Case(Shape(200, heads=2, head_dim=64, d_state=64, norm_groups=2), torch.bfloat16)
    case.dt[70, 1] = math.nan
    y, state = case.run(chunks, False)
    assert y[:70].isfinite().all() and y[:, :64].isfinite().all() and y[70:, 64:].isnan().all()
    assert state[0].isfinite().all() and state[1].isnan().all()


def test_chunks_by_any_number_of_threads(chunks: Loop) -> None:
    case = Case(Shape(150, heads=4, head_dim=64, d_state=64, groups=2), torch.bfloat16)
    assert equal_by_threads(lambda: torch.cat([part.flatten() for part in case.run(chunks, True)]))


def test_what_is_no_chunk() -> None:
    usual = Shape(LEAST_TOKENS, heads=2, head_dim=64, d_state=64)

    def taken(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> bool:
        case = Case(shape, dtype)
        return fits_chunks(case.weights, case.xbc[None], case.state[None])

    assert taken(usual) and taken(usual._replace(head_dim=32, norm_groups=2))
    assert not taken(usual, torch.float32)
    for other in ({"seq": LEAST_TOKENS - 1}, {"taps": 3}, {"head_dim": 96}, {"head_dim": 48}, {"d_state": 48}):
        assert not taken(usual._replace(**other)), other
    assert not taken(usual._replace(heads=3, head_dim=32, norm_groups=6))  # groups of 16


def test_switched_off(loop: Loop) -> None:
    assert is_off(scan.loop) and is_off(scan.chunks) and is_off(scan.vectors)
