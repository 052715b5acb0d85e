"""An adapter fitted to what tying loses."""

from __future__ import annotations

import pytest
import torch

from zamba_compat.checkpoint.resolving import lowrank
from zamba_compat.checkpoint.resolving.lowrank import fit_adapter, pad


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize(("out", "rank"), [(96, 8), (96, 20), (24, 20)])
def test_it_is_the_truncated_singular_value_decomposition(
    rows: int, out: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "SLICE", rows * 40)
    tied, own = torch.randn(2, out, 40).unbind()
    down, up = torch.randn(8, 40), torch.randn(out, 8)
    new_down, new_up, left = fit_adapter(tied, own, down, up, rank)
    assert (new_down.shape, new_up.shape) == ((rank, 40), (out, rank))
    wanted = own.double() + up.double() @ down.double() - tied.double()
    got = new_up.double() @ new_down.double()
    u, s, v = torch.linalg.svd(wanted, full_matrices=False)
    torch.testing.assert_close(got, u[:, :rank] * s[:rank] @ v[:rank], rtol=0, atol=2e-5)
    assert left == pytest.approx((wanted - got).norm().item(), rel=1e-9)
    assert left == pytest.approx(s[rank:].square().sum().sqrt().item(), rel=1e-6)


def test_a_difference_of_low_rank_is_held_whole() -> None:
    tied, down, up = torch.randn(60, 40), torch.randn(8, 40), torch.randn(60, 8)
    own = tied + torch.randn(60, 4) @ torch.randn(4, 40)
    new_down, new_up, left = fit_adapter(tied, own, down, up, 12)
    assert left < 1e-4
    x = torch.randn(40, 5)
    torch.testing.assert_close(tied @ x + new_up @ (new_down @ x), own @ x + up @ (down @ x), rtol=0, atol=1e-3)
    assert new_down.norm().item() == pytest.approx(new_up.norm().item(), rel=1e-4)


def test_a_rank_beyond_the_matrix_and_a_zero_difference() -> None:
    zero = torch.zeros(6, 4, dtype=torch.bfloat16)
    down, up, left = fit_adapter(zero, zero, zero[:2], zero[:, :2], 9)
    assert left == 0 and not down.any() and not up.any()
    assert down.shape == (9, 4) and up.shape == (6, 9) and up.dtype == down.dtype == torch.bfloat16


def test_what_rounding_leaves_is_counted() -> None:
    tied, own = torch.randn(2, 30, 20).bfloat16().unbind()
    down, up = torch.randn(20, 20).bfloat16(), torch.randn(30, 20).bfloat16()
    new_down, new_up, left = fit_adapter(tied, own, down, up, 20)  # the rank is no limit here
    wanted = own.double() + up.double() @ down.double() - tied.double()
    apart = (wanted - new_up.double() @ new_down.double()).norm().item()
    assert left == pytest.approx(apart, rel=1e-9)
    assert 1e-4 < left / wanted.norm().item() < 1e-2


def test_padding_changes_no_product() -> None:
    down, up = torch.randn(3, 7), torch.randn(5, 3)
    wide_down, wide_up = pad(down, 0, 4), pad(up, 1, 4)
    assert (wide_down.shape, wide_up.shape) == ((4, 7), (5, 4))
    assert torch.equal(wide_up @ wide_down, up @ down)
