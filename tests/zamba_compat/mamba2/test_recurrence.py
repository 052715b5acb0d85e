"""The scan and the convolution against the token-by-token recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support import reference
from zamba_compat.mamba2.recurrence import MAX_CHUNK, causal_conv, scan, step

HEADS, GROUPS, HEAD_DIM, D_STATE, TAPS = 6, 2, 5, 3, 4
CONV_DIM = HEADS * HEAD_DIM + 2 * GROUPS * D_STATE


class Inputs(dict[str, Any]):
    """Arguments of `scan`; `at(part)` takes a slice of the sequence."""

    def at(self, part: slice) -> dict[str, Tensor]:
        return {name: t[:, part] if name in ("x", "dt", "B", "C") else t for name, t in self.items()}


def make_inputs(seq: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Inputs:
    """Steps and decays with which a state lasts for tens of tokens."""
    inputs = Inputs(
        x=torch.randn(batch, seq, HEADS, HEAD_DIM),
        dt=F.softplus(torch.randn(batch, seq, HEADS) - 2),
        A=-torch.rand(HEADS),
        B=torch.randn(batch, seq, GROUPS, D_STATE),
        C=torch.randn(batch, seq, GROUPS, D_STATE),
        D=torch.randn(HEADS),
    )
    return Inputs({name: tensor.to(dtype) for name, tensor in inputs.items()})


def by_token(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    b, c = (t.repeat_interleave(HEADS // GROUPS, 2) for t in (B, C))
    rows = [
        reference.selective_scan(x[i], dt[i, ..., None], A[:, None, None], b[i], c[i], D[:, None])
        for i in range(len(x))
    ]
    return torch.stack([y for y, _ in rows]), torch.stack([h for _, h in rows])


@pytest.mark.parametrize("seq", [1, 2, 7, 8, 9, 21])
def test_scan_is_the_recurrence(seq: int) -> None:
    inputs = make_inputs(seq)
    for got, want in zip(scan(**inputs, chunk_size=8), by_token(**inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_scan_in_float32_at_the_default_chunk() -> None:
    inputs = make_inputs(3 * MAX_CHUNK + 5)
    y, state = scan(**{name: tensor.float() for name, tensor in inputs.items()})
    wanted = by_token(**inputs)
    assert y.dtype == state.dtype == torch.float32
    assert reference.relative_difference(y, wanted[0]) < 2e-6
    assert reference.relative_difference(state, wanted[1]) < 2e-6


@pytest.mark.parametrize("cut", [1, 8, 13])
def test_scan_goes_on_from_a_state(cut: int) -> None:
    inputs = make_inputs(20)
    first, state = scan(**inputs.at(slice(cut)), chunk_size=8)
    second, state = scan(**inputs.at(slice(cut, None)), state=state, chunk_size=8)
    y, final = scan(**inputs, chunk_size=8)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(state, final)


def test_step_is_a_scan_of_one_token() -> None:
    inputs = make_inputs(1)
    state = torch.randn(2, HEADS, HEAD_DIM, D_STATE, dtype=torch.float64)
    before = state.clone()
    wanted_y, wanted = scan(**inputs, state=state)
    token = {name: t[:, 0] if name in ("x", "dt", "B", "C") else t for name, t in inputs.items()}
    y, after = step(**token, state=state)
    torch.testing.assert_close(y, wanted_y[:, 0])
    torch.testing.assert_close(after, wanted)
    assert torch.equal(state, before)
    token["D"] = None
    torch.testing.assert_close(step(**token, state=state)[0], y - inputs["D"][:, None] * inputs["x"][:, 0])


def test_scan_without_the_skip() -> None:
    inputs = make_inputs(9)
    skip = inputs["D"][:, None] * inputs["x"]
    y = scan(**inputs)[0]
    torch.testing.assert_close(scan(**{**inputs, "D": None})[0], y - skip)


def test_a_token_with_no_step_leaves_the_state() -> None:
    inputs = make_inputs(12)
    inputs["dt"][:, 5:] = 0
    torch.testing.assert_close(scan(**inputs, chunk_size=4)[1], scan(**inputs.at(slice(5)))[1])


def test_fast_decay_neither_overflows_nor_hides_slow_decay_after_it() -> None:
    """Above the diagonal exp would be infinite; after much elapsed time, float32 cannot tell tokens apart."""
    inputs = make_inputs(40)
    inputs["dt"][:, :20] *= 1e4
    inputs["dt"][:, 20:] *= 1e-2
    single = {name: tensor.float().requires_grad_() for name, tensor in inputs.items()}
    y, state = scan(**single)
    (y.sum() + state.sum()).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in single.values())
    wanted_y, wanted = by_token(**inputs)
    assert reference.relative_difference(y.detach()[:, 21:], wanted_y[:, 21:]) < 2e-6
    assert reference.relative_difference(state.detach(), wanted) < 2e-6


def test_gradients() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in make_inputs(5, batch=1).items()}
    state = torch.randn(1, HEADS, HEAD_DIM, D_STATE, dtype=torch.float64, requires_grad=True)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        *values, state = tensors
        return scan(**dict(zip(inputs, values, strict=True)), state=state, chunk_size=2)

    assert torch.autograd.gradcheck(run, (*inputs.values(), state), fast_mode=True)
    token = [t[:, 0].detach().requires_grad_() if t.dim() > 1 else t for t in inputs.values()]
    x, dt, a, b, c, d = token
    assert torch.autograd.gradcheck(
        lambda *t: step(*t[:5], D=t[5], state=t[6]), (x, dt, a, b, c, d, state), fast_mode=True
    )


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made meanwhile."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.elements = max([self.elements, *(t.numel() for t in made if isinstance(t, Tensor))])
        return result


@pytest.mark.parametrize("seq", [3, 64, 512])
def test_memory_grows_with_the_sequence_alone(seq: int) -> None:
    inputs = make_inputs(seq, batch=1)
    with Largest() as largest:
        scan(**inputs, chunk_size=16)
    assert largest.elements <= max(inputs["x"].numel(), HEADS * min(seq, 16) ** 2, HEADS * HEAD_DIM * D_STATE)


@pytest.mark.parametrize("seq", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("has_bias", [True, False])
def test_causal_conv(seq: int, has_bias: bool) -> None:
    x, earlier = torch.randn(2, seq, CONV_DIM), torch.randn(2, CONV_DIM, TAPS)
    weight, bias = torch.randn(CONV_DIM, 1, TAPS), torch.randn(CONV_DIM) if has_bias else None
    for state in (None, earlier):
        past = torch.zeros_like(earlier) if state is None else state
        inputs = torch.cat([past, x.mT], -1)
        y, after = causal_conv(x, weight, bias, state)
        wanted = F.conv1d(inputs[..., 1:], weight, bias, groups=CONV_DIM).mT
        torch.testing.assert_close(y, wanted)
        assert torch.equal(after, inputs[..., -TAPS:])
        shorter = causal_conv(x, weight, bias, state, lengths=torch.tensor([seq - 1, seq]))[1]
        assert torch.equal(shorter[0], inputs[0, :, -TAPS - 1 : -1])
        assert torch.equal(shorter[1], after[1])


def test_causal_conv_keeps_the_state_in_the_dtype_of_its_input() -> None:
    x = torch.randn(1, 6, CONV_DIM, dtype=torch.bfloat16)
    y, state = causal_conv(x, torch.randn(CONV_DIM, 1, TAPS), None)
    assert (y.dtype, state.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(state, x.mT[..., -TAPS:])
