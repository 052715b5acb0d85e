"""What the mixer on accelerators is made of: the batched scan, the layout of rows, how many operations it starts."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.fused_kernels import below
from support.launches import count
from zamba_compat.mamba2 import batched_scan, fused, recurrence, token_layout

BATCH, SEQ, HEADS, HEAD_DIM, D_STATE, GROUPS = 2, 53, 4, 3, 5, 2
DOCUMENTS = ((10, 1, 22, 20), (48, 5))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def inputs() -> dict[str, Any]:
    return {
        "x": drawn(BATCH, SEQ, HEADS, HEAD_DIM),
        "dt": drawn(BATCH, SEQ, HEADS).abs(),
        "A": -2 * drawn(HEADS).abs(),
        "B": drawn(BATCH, SEQ, GROUPS, D_STATE),
        "C": drawn(BATCH, SEQ, GROUPS, D_STATE) + 1,
        "D": drawn(HEADS),
    }


def numbers() -> Tensor:
    rows = [torch.cat([torch.full((n,), i) for i, n in enumerate(lengths, 1)]) for lengths in DOCUMENTS]
    return torch.stack(rows).int()


@pytest.mark.parametrize("chunk_size", [1, 7, 53, 256])
@pytest.mark.parametrize("past", [False, True])
def test_scan(chunk_size: int, past: bool) -> None:
    state = drawn(BATCH, HEADS, HEAD_DIM, D_STATE) if past else None
    want = recurrence.scan(**inputs(), state=state)
    got = batched_scan.scan(**inputs(), state=state, chunk_size=chunk_size)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 7, 53, 256])
def test_scan_of_documents(chunk_size: int) -> None:
    given = inputs()
    given["x"].requires_grad_()
    y, state = batched_scan.scan(**given, state=None, chunk_size=chunk_size, documents=numbers())
    (gradient,) = torch.autograd.grad(y.square().sum() + state.sum(), given["x"])
    assert gradient.isfinite().all()
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for length in lengths:
            here = slice(start, start + length)
            part = {name: t[row : row + 1, here] if t.dim() > 1 else t for name, t in given.items()}
            alone, last = recurrence.scan(**part)
            torch.testing.assert_close(y[row : row + 1, here], alone, rtol=1e-10, atol=1e-10)
            start += length
        torch.testing.assert_close(state[row : row + 1], last, rtol=1e-10, atol=1e-10)


def test_scan_in_float32_holds_where_decays_differ_much() -> None:
    # A head that forgets everything at once and then nothing: differences of large sums would lose it.
    given = {name: t.float() for name, t in inputs().items()}
    given["dt"] = torch.full((BATCH, SEQ, HEADS), 1e-4)
    given["dt"][:, :20] = 300
    want, _ = recurrence.scan(**{name: t.double() for name, t in given.items()})
    got, _ = batched_scan.scan(**given, state=None, chunk_size=8)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_convolution() -> None:
    x, weight, bias = drawn(BATCH, SEQ, 6), drawn(6, 4), drawn(6)
    want, _ = recurrence.causal_conv(x, weight[:, None], bias)
    torch.testing.assert_close(batched_scan.causal_conv(x, weight, bias), want)
    got = batched_scan.causal_conv(x, weight, bias, numbers())
    for row, lengths in enumerate(DOCUMENTS):
        parts = [recurrence.causal_conv(part[None], weight[:, None], bias)[0] for part in x[row].split(lengths)]
        torch.testing.assert_close(got[row], torch.cat(parts, 1)[0])


def test_layout() -> None:
    assert token_layout.layout(None, 3) == (None, None)
    assert token_layout.layout(torch.ones(1, 1, 3, 3), 3) == (None, None)
    assert token_layout.layout(torch.ones(2, 5), 3) == (None, None)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert token_layout.layout(mask, 3) == (None, None)  # padding before the tokens of this step
    kept, documents = token_layout.layout(mask, 4)
    assert kept is not None and torch.equal(kept, mask.bool()) and documents is None
    mask[0, 0] = 1  # written to: what was remembered of it is void
    assert token_layout.layout(mask, 4) == (None, None)
    assert not token_layout.numbers_documents(torch.ones(1, 4, dtype=torch.int32))
    assert token_layout.numbers_documents(torch.tensor([[1, 1, 2]], dtype=torch.int32))
    assert not token_layout.numbers_documents(torch.tensor([[1, 1, 2]]))


@pytest.mark.parametrize("channels", [16, 12])
def test_channels_are_in_a_layout_that_the_convolution_takes(channels: int) -> None:
    wide = torch.randn(2, 9, 20)
    x = fused._channels(wide[..., :channels])
    assert torch.equal(x, wide[..., :channels].mT)
    assert x.stride(2) == 1 or (x.stride(1) == 1 and x.stride(0) % 8 == 0 == x.stride(2) % 8)
    fits = torch.randn(2, 8, 24)[..., :16]
    assert fused._channels(fits).data_ptr() == fits.data_ptr()


def published(heads: int, d_state: int, groups: int, hidden: int) -> Any:
    """A mixer of a published shape on the meta device, and what is released of it."""
    from transformers import Zamba2Config
    from transformers.models.zamba2.modeling_zamba2 import Zamba2MambaMixer

    config = Zamba2Config(
        hidden_size=hidden,
        num_hidden_layers=2,
        layers_block_type=["mamba", "hybrid"],
        n_mamba_heads=heads,
        mamba_d_state=d_state,
        mamba_ngroups=groups,
        chunk_size=256,
    )
    with torch.device("meta"):
        return Zamba2MambaMixer(config, layer_idx=0).to(torch.bfloat16)


@pytest.mark.parametrize("shape", [(64, 128, 1, 2048), (112, 64, 2, 3584)])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 4096), (8, 1024)])
def test_launches(shape: tuple[int, int, int, int], rows: int, tokens: int) -> None:
    mixer = published(*shape)
    x = torch.empty(rows, tokens, shape[-1], device="meta", dtype=torch.bfloat16)
    stock_forward = below(getattr(type(mixer), "torch_forward", type(mixer).forward))
    stock, _ = count(lambda: stock_forward(mixer, x))
    ours, double = count(lambda: fused.mixer_forward(mixer, x))
    assert ours <= 2 * stock and not double


def test_a_kernel_is_told_from_its_fallback() -> None:
    patch = pytest.importorskip("zamba_compat.patches").ADAPTERS
    adapter = next(a for a in patch if a.name == "zamba2-fused-path")
    find = dict(zip(*_cells(adapter.patches[0].replace), strict=True))["find"]
    is_kernel = find.__globals__["_is_kernel"]

    def decorated(new: bool) -> Any:
        def fallback() -> None: ...

        implementation = (lambda: None) if new else fallback

        @functools.wraps(fallback)
        def wrapped() -> Any:
            return implementation()

        return wrapped

    def as_module(func: Any) -> nn.Module:  # what the package `kernels` makes of a function
        class Func(nn.Module):
            def forward(self) -> Any:
                return func()

        return Func()

    assert is_kernel(decorated(True)) and not is_kernel(decorated(False))
    assert is_kernel(as_module(decorated(True))) and not is_kernel(as_module(decorated(False)))
    replaced = as_module(decorated(False))
    replaced.forward = SimpleNamespace(__func__=lambda self: None)  # type: ignore[assignment]
    assert is_kernel(replaced)


def _cells(function: Any) -> tuple[tuple[str, ...], list[Any]]:
    return function.__code__.co_freevars, [cell.cell_contents for cell in function.__closure__]
