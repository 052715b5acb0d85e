"""Attention of one token in C: the softmax in float64, and PyTorch's own wherever it is not for the loop."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.native import there
from zamba_compat import configure
from zamba_compat.cpu.decode_attention import attention
from zamba_compat.cpu.native import attention as native


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def loop() -> native.Loop:
    return there(native.loop())


def inputs(tokens: int, head_dim: int = 32, batch: int = 2, heads: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(tokens + head_dim)
    sizes = (1, tokens, tokens)
    query, key, value = (torch.randn(batch, heads, n, head_dim, generator=random).bfloat16() for n in sizes)
    return query, key, value


def wanted(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float = 0.3) -> Tensor:
    scores = query.double() @ key.double().mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    return scores.softmax(-1) @ value.double()


def assert_close(found: Tensor | None, right: Tensor) -> None:
    """But for the rounding to bfloat16."""
    assert found is not None and found.shape == right.shape and found.dtype == torch.bfloat16
    assert (found.double() - right).norm() < 2**-8 * right.norm()
    assert ((found.double() - right).abs() <= 2**-8 * right.abs() + 1e-5 * right.abs().max()).all()


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 128, 160])
def test_it_is_the_softmax(loop: native.Loop, tokens: int, head_dim: int) -> None:
    given = inputs(tokens, head_dim)
    assert_close(attention(*given, scale=0.3), wanted(*given))


def test_the_usual_scale(loop: native.Loop) -> None:
    given = inputs(20, 64)
    assert_close(attention(*given), wanted(*given, scale=0.125))


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_heads_that_share_keys(loop: native.Loop, keys: int) -> None:
    query, key, value = inputs(20, heads=6)
    key, value = key[:, :keys], value[:, :keys]
    given = (tensor.repeat_interleave(6 // keys, 1) for tensor in (key, value))
    assert_close(attention(query, key, value, scale=0.3, enable_gqa=True), wanted(query, *given))


def test_parts_of_larger_tensors(loop: native.Loop) -> None:
    """As keys are that grow, and as heads are before they are transposed."""
    query, key, value = inputs(50, 32)
    whole = torch.full((2, 3, 90, 32), torch.nan).bfloat16()
    whole[:, :, :50] = key
    values = value.transpose(1, 2).contiguous().transpose(1, 2)
    query = torch.cat([query, query], -1)[..., 32:]
    assert_close(attention(query, whole[:, :, :50], values, scale=0.3), wanted(query, key, value))


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float32], ids=str)
def test_masks(loop: native.Loop, dtype: torch.dtype) -> None:
    given = inputs(40)
    kept = torch.rand(2, 1, 1, 40, generator=torch.Generator().manual_seed(1)) > 0.4
    mask = kept if dtype == torch.bool else torch.where(kept, 0.0, torch.finfo(dtype).min).to(dtype)
    assert_close(attention(*given, mask, scale=0.3), wanted(*given, kept))
    if dtype != torch.bool:
        mask = torch.where(kept, torch.linspace(-2, 2, 40), -torch.inf).to(dtype)
        assert_close(attention(*given, mask, scale=0.3), wanted(*given, mask))


def test_scores_of_any_size(loop: native.Loop) -> None:
    query, key, value = inputs(70)
    for factor in (1e-30, 1.0, 1e4, 1e18):
        assert_close(attention(query * factor, key, value, scale=0.3), wanted(query * factor, key, value))


def test_what_is_no_number_stays_none(loop: native.Loop) -> None:
    query, key, value = inputs(70)
    key[0, 1, 5, 3] = torch.nan
    value[1, 2, 69, 0] = torch.inf
    found = attention(query, key, value)
    assert found is not None
    assert found[0, 1].isnan().all() and found[1, 2, 0, 0] == torch.inf
    assert found.isfinite().sum() == found.numel() - 33


def test_it_replaces_pytorchs(loop: native.Loop) -> None:
    """Whatever PyTorch is given by name."""
    given = inputs(40)
    options: dict[str, Any] = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": 0.3}
    found = attention(*given, **options)
    assert found is not None
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*given, **options), rtol=2e-2, atol=2e-3)


def test_where_it_stays_pytorchs() -> None:
    query, key, value = inputs(40)
    if native.loop() is not None:
        assert attention(query, key, value, enable_gqa=False) is not None
        assert attention(query, key, value, enable_gqa=True) is not None
    assert attention(key, key, value) is None, "several queries"
    assert attention(query, key, value, is_causal=True) is None
    assert attention(query, key, value, dropout_p=0.1) is None
    assert attention(query, key[:, :2], value[:, :2], enable_gqa=True) is None, "PyTorch says what is wrong with it"
    assert attention(query, key[:, :1], value[:, :1]) is None
    assert attention(query.float(), key.float(), value.float()) is None
    assert attention(query, key, value.float()) is None
    assert attention(query, key.mT.contiguous().mT, value) is None
    assert attention(query[..., :8], key[..., :8], value[..., :8]) is None
    assert attention(query[0], key[0], value[0]) is None
    assert attention(query, key[:, :, :0], value[:, :, :0]) is None
    assert attention(query, key, value, torch.zeros(2, 3, 1, 40)) is None, "a mask for each head"
    assert attention(query, key, value, torch.zeros(1, 40)) is None
    nothing = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    nothing[1] = False
    assert attention(query, key, value, nothing) is None, "a row that sees nothing"
    with torch.enable_grad():
        assert attention(query, key, value) is None
    configure(native=False)
    try:
        assert attention(query, key, value) is None
    finally:
        configure(native=None)


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_any_number_of_threads(loop: native.Loop, limit: int) -> None:
    program = """if True:
        import torch
        from zamba_compat.cpu.decode_attention import attention
        for heads in (1, 2, 5):
            q, k, v = (torch.randn(1, heads, n, 32).bfloat16() for n in (1, 77, 77))
            wanted = torch.softmax(q.double() @ k.double().mT, -1) @ v.double()
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                with torch.no_grad():
                    found = attention(q, k, v, scale=1.0)
                assert (found - wanted).norm() < 0.01 * wanted.norm(), (threads, heads)
    """
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "OMP_THREAD_LIMIT": str(limit)})
