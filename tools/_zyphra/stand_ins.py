"""Plain PyTorch for what the model files of Zyphra's repositories import, so that they run unchanged on the CPU."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORK = "zyphra_fork_of_transformers"


class RMSNorm(nn.Module):
    """Of Mamba2, with or without a gate: norm(x * silu(z)) in groups of channels."""

    def __init__(
        self,
        size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert not norm_before_gate
        self.eps, self.group_size = eps, group_size or size
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        x = x if z is None else x * F.silu(z)
        groups = x.unflatten(-1, (-1, self.group_size))
        return (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.eps)).flatten(-2) * self.weight


def scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, D: Tensor, dt_bias: Tensor, **rest: Any) -> Tensor:
    """The recurrence of Mamba2, token by token. x: [batch, seq, heads, head_dim]; b, c: [batch, seq, groups, state]."""
    assert rest.pop("dt_softplus") and not any(rest[key] is not None for key in ("z", "seq_idx"))
    per_group = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(per_group, 2), c.repeat_interleave(per_group, 2)
    dt = F.softplus(dt + dt_bias)
    h, out = x.new_zeros(x.shape[0], *x.shape[2:], b.shape[-1]), []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None, None]
        h = h * torch.exp(step * a[:, None, None]) + step * x[:, t, :, :, None] * b[:, t, :, None]
        out.append((h * c[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(out, 1)


def causal_conv(x: Tensor, taps: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Depthwise over x [batch, channels, seq], then SiLU."""
    assert activation == "silu"
    return F.silu(F.conv1d(F.pad(x, (taps.shape[1] - 1, 0)), taps[:, None], bias, groups=len(taps)))


def fused(zxbcdt: Tensor, taps: Tensor, bias: Tensor, dt_bias: Tensor, a: Tensor, *, D: Tensor, **rest: Any) -> Tensor:
    """The whole mixer after in_proj, as the fused kernel: convolution, scan, gated norm, out_proj."""
    norm, groups = rest["rmsnorm_weight"], rest["ngroups"]
    inner, heads = len(norm), len(dt_bias)
    state = (len(taps) - inner) // (2 * groups)
    z, xbc, dt = zxbcdt.split([inner, len(taps), heads], -1)
    xbc = causal_conv(xbc.transpose(1, 2), taps, bias, rest["activation"]).transpose(1, 2)
    x, b, c = xbc.split([inner, groups * state, groups * state], -1)
    b, c = b.unflatten(-1, (groups, state)), c.unflatten(-1, (groups, state))
    y = scan(x.unflatten(-1, (heads, -1)), dt, a, b, c, D=D, dt_bias=dt_bias, dt_softplus=True, z=None, seq_idx=None)
    gated = RMSNorm(inner, rest["rmsnorm_eps"], inner // groups)
    gated.weight = nn.Parameter(norm)
    return F.linear(gated(y.flatten(2), z), rest["outproj_weight"], rest["outproj_bias"])


class DotProductAttention(nn.Module):
    """Of transformer_engine: q, k, v [seq, batch, heads, d], scores scaled by 1 / sqrt(kv_channels)."""

    def __init__(self, num_attention_heads: int, kv_channels: int, attn_mask_type: str, **rest: Any) -> None:
        super().__init__()
        self.scale, self.causal = kv_channels**-0.5, attn_mask_type == "causal"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        return mixed.permute(2, 0, 1, 3).flatten(2)


class PretrainedConfig:
    """Keeps what it is given, as transformers' class does."""

    _attn_implementation, use_return_dict = "eager", False
    output_attentions = output_hidden_states = False

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class PreTrainedModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        pass


def module(name: str, path: Path | None = None, **content: Any) -> None:
    """Put a module, or a package whose files lie in `path`, where `import` finds it."""
    made = types.ModuleType(name)
    vars(made).update({**content, "__path__": [] if path is None else [str(path)]})
    sys.modules[name] = made


def decorator(*arguments: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda decorated: decorated


def stand_in(fork: Path, native: Path) -> None:
    """Make both checkouts' model files importable."""
    kernels = {"mamba_chunk_scan_combined": scan, "mamba_split_conv1d_scan_combined": fused}
    for root in ("mamba_ssm.ops", "ops"):
        module(root.partition(".")[0])
        module(root)
        module(f"{root}.triton")
        module(f"{root}.triton.layernorm", RMSNorm=RMSNorm, layer_norm_fn=None, rms_norm_fn=None)
        module(f"{root}.triton.layernorm_gated", RMSNorm=RMSNorm)
        module(f"{root}.triton.ssd_combined", **kernels)
        module(f"{root}.triton.selective_state_update", selective_state_update=None)
        names = ("selective_scan_fn", "mamba_inner_fn", "SELECTIVE_SCAN_CUDA_IMPORT_FAILED")
        module(f"{root}.selective_scan_interface", **dict.fromkeys(names))
    module("causal_conv1d", causal_conv1d_fn=causal_conv, causal_conv1d_update=None)
    module("transformer_engine", pytorch=types.SimpleNamespace(DotProductAttention=DotProductAttention))
    torch.cuda.current_device = lambda: "cpu"  # where rotary.py puts its frequencies

    no, nothing = (lambda: False), dict.fromkeys
    logging = types.SimpleNamespace(get_logger=lambda name: types.SimpleNamespace(warning_once=lambda text: None))
    outputs = nothing(("BaseModelOutputWithPast", "CausalLMOutputWithPast", "SequenceClassifierOutputWithPast"))
    available = ("is_causal_conv1d_available", "is_flash_attn_2_available", "is_mamba_ssm_available")
    decorators = ("add_start_docstrings", "add_start_docstrings_to_model_forward", "replace_return_docstrings")
    module(FORK)
    module(f"{FORK}.models")
    module(f"{FORK}.models.zamba2", fork / "src" / "transformers" / "models" / "zamba2")
    module(f"{FORK}.activations", ACT2FN=None)
    module(f"{FORK}.cache_utils", Cache=object, DynamicCache=object)
    module(f"{FORK}.configuration_utils", PretrainedConfig=PretrainedConfig)
    module(f"{FORK}.modeling_attn_mask_utils", AttentionMaskConverter=None)
    module(f"{FORK}.modeling_outputs", **outputs)
    module(f"{FORK}.modeling_utils", PreTrainedModel=PreTrainedModel)
    tools = {"logging": logging, "is_flash_attn_greater_or_equal_2_10": no, **dict.fromkeys(decorators, decorator)}
    module(f"{FORK}.utils", **tools)
    module(f"{FORK}.utils.import_utils", **dict.fromkeys(available, no))
    sys.path.insert(0, str(native))
