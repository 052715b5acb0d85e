"""Linear layers, norms and the feed-forward part in blocks, against the modules themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zamba_compat.cpu import blocking

WIDTH, INNER, RANK = 16, 24, 4


class MLP(nn.Module):
    """As a Zamba2MLP; the pair of the position at layer 5."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(WIDTH, 2 * INNER, bias=bias)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=bias)
        pair = nn.Sequential(nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, 2 * INNER, bias=False))
        self.gate_up_proj_adapter_list = nn.ModuleList([nn.Identity(), pair])
        self.layer_dic = {2: 0, 5: 1}
        self.act_fn = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.gate_up_proj(x) + self.gate_up_proj_adapter_list[1](x)).chunk(2, -1)
        result: Tensor = self.down_proj(self.act_fn(gate) * up)
        return result


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seq", [2, blocking.BLOCK // 2, blocking.BLOCK])
def test_the_feed_forward_part(bias: bool, dtype: torch.dtype, seq: int) -> None:
    mlp, x = MLP(bias).to(dtype), torch.randn(2, seq, WIDTH, dtype=dtype)
    got = blocking.mlp_forward(mlp, x, 5)
    assert got is not None
    wanted = mlp.double()(x.double())
    assert (got.double() - wanted).abs().max() < 8 * torch.finfo(dtype).eps * wanted.abs().max()
    again = blocking.mlp_forward(mlp.to(dtype), torch.randn_like(x), 5)
    assert again is not None and not torch.equal(again, got)  # no buffer of before
    assert torch.equal(got, blocking.mlp_forward(mlp, x, 5))


@pytest.mark.parametrize("watch", ["hook", "forward", "type", "dtype", "gradients", "autocast", "pair", "one row"])
def test_what_is_left_to_the_module(watch: str) -> None:
    mlp, x = MLP(False), torch.randn(1, 3, WIDTH)
    assert blocking.mlp_forward(mlp, x, 5) is not None
    if watch == "hook":
        mlp.down_proj.register_forward_hook(lambda *_: None)
    elif watch == "forward":
        mlp.gate_up_proj.forward = mlp.gate_up_proj.forward
    elif watch == "type":
        mlp.down_proj = type("Wrapped", (nn.Linear,), {})(INNER, WIDTH)
    elif watch == "dtype":
        mlp.down_proj.double()
    elif watch == "pair":
        mlp.gate_up_proj_adapter_list[1] = nn.Identity()
    elif watch == "one row":
        x = x[:, :1]
    with torch.set_grad_enabled(watch == "gradients"), torch.autocast("cpu", enabled=watch == "autocast"):
        assert blocking.mlp_forward(mlp, x, 5) is None


def test_a_hook_for_all_modules_is_seen() -> None:
    with_hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not blocking.is_plain(nn.Linear(2, 2), torch.zeros(1, 2))
    finally:
        with_hook.remove()
    assert blocking.is_plain(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("bias", [True, False])
def test_projections(bias: bool) -> None:
    linear, x = nn.Linear(WIDTH, 5, bias=bias), torch.randn(2, 7, WIDTH)
    torch.testing.assert_close(blocking.project(linear, x, "test"), linear(x))
    linear.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(blocking.project(linear, x, "test"), linear(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, blocking.NORM_BLOCK, 2 * blocking.NORM_BLOCK + 3])
def test_norms(dtype: torch.dtype, rows: int) -> None:
    from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNorm

    norm = Zamba2RMSNorm(WIDTH, eps=1e-3).to(dtype)
    norm.weight.normal_()
    x = torch.randn(2, rows, WIDTH).mul(10).to(dtype)
    got = blocking.rms_norm(norm, x)
    with torch.enable_grad():
        wanted = norm(x).detach()
    assert got.dtype == wanted.dtype
    assert (got - wanted).abs().max() <= torch.finfo(dtype).eps * 2 * wanted.abs().max()
