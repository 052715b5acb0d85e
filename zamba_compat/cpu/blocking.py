"""Linear layers, norms and the shared blocks' feed-forward part in blocks of tokens.

A fresh tensor of some megabytes is paged in while it is filled, which on a CPU takes longer than most of what is
computed. Long sequences go through in blocks, and a block's intermediate results into buffers that are used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn.modules import module as hooks  # noqa: TID253

from . import amx, gemv, upcast
from .function_mode import unasked
from .workspace import buffers

# Rows that a projection is given at a time: enough to hide that its weight is read anew for every block.
BLOCK = 512
NORM_BLOCK = 64  # rows of a norm at a time, which the caches hold
FEWEST = 64  # rows; fewer gain nothing, and keep the bits that the release's own forward gives


def is_plain(module: nn.Module, x: Tensor) -> bool:
    """Whether calling a linear layer with x is its matrix product and nothing more.

    No other type (quantized, with an adapter), no hook, no offloaded or foreign weight, no gradient, no autocast.
    """
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.dtype == x.dtype
        and x.device.type == module.weight.device.type == "cpu"
        and is_unwatched(module)
        and not torch.is_grad_enabled()
        and not autocasts()
        and not torch.compiler.is_compiling()
    )


def is_plain_norm(module: nn.Module, x: Tensor) -> bool:
    """Whether a Zamba2RMSNorm may be computed by `rms_norm`."""
    weight = module.weight
    return (
        type(weight) is nn.Parameter
        and x.device.type == weight.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def is_long(x: Tensor) -> bool:
    """Whether x [..., features] has rows enough to gain from blocks."""
    return x.shape[:-1].numel() >= FEWEST


def rms_norm(module: Any, x: Tensor) -> Tensor:
    """The forward pass of a Zamba2RMSNorm, with its roundings: in float32, rounded, then times the weight."""
    weight, width = module.weight, x.shape[-1]
    with unasked(x):
        result = x.new_empty(x.shape, dtype=torch.promote_types(weight.dtype, x.dtype))
        for part, place in in_blocks(NORM_BLOCK, x.reshape(-1, width), result.view(-1, width)):
            wide = buffers.take("norm", x, len(part), width, dtype=torch.float32)
            mean = torch.linalg.vector_norm(wide.copy_(part), dim=-1, keepdim=True).square_().div_(width)
            torch.mul(part_in(x.dtype, wide.mul_(mean.add_(module.variance_epsilon).rsqrt_())), weight, out=place)
    return result


def part_in(dtype: torch.dtype, wide: Tensor) -> Tensor:
    """A float32 buffer in another dtype, in a buffer of its own."""
    return wide if dtype == wide.dtype else buffers.take("rounded", wide, *wide.shape, dtype=dtype).copy_(wide)


def autocasts() -> bool:
    """Whether products on a CPU run under autocast."""
    if hasattr(torch, "get_autocast_dtype"):  # since PyTorch 2.4, when the question took a device
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_cpu_enabled()


def in_blocks(length: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several tensors at a time."""
    for start in range(0, len(tensors[0]), length):
        yield tuple(tensor[start : start + length] for tensor in tensors)


def is_unwatched(module: nn.Module) -> bool:
    """Whether nobody sees a module being called: no hook of any kind, no forward of the instance's own."""
    return "forward" not in vars(module) and not _has_hooks(module)  # accelerate's hooks put a forward there, too


def is_only_placed(module: nn.Module) -> bool:
    """Whether nothing but accelerate's placement sees a module being called; its weight is brought in by the caller."""
    return type(getattr(module, "_hf_hook", None)).__name__ == "AlignDevicesHook" and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def product(module: Any, x: Tensor, out: Tensor) -> Tensor:
    """What a plain linear layer makes of x [rows, in_features], in `out` [rows, out_features]."""
    if upcast.gains(x.dtype, x.device.type, len(x)):
        upcast.product(x, module.weight, module.bias, out=out)
    elif any(own(x, module.weight, module.bias, out) is not None for own in (amx.product, gemv.product)):
        return out
    elif module.bias is None:
        torch.mm(x, module.weight.T, out=out)
    else:
        torch.addmm(module.bias, x, module.weight.T, out=out)
    return out


def add_product(to: Tensor, x: Tensor, weight: Tensor) -> None:
    """to += x @ weight.T, of x [rows, in_features] and weight [out_features, in_features]."""
    if upcast.gains(x.dtype, x.device.type, len(x)):
        to.add_(upcast.product(x, weight, out=buffers.take("added", x, *to.shape)))
    elif not amx.add_product(to, x, weight):
        to.addmm_(x, weight.T)


def project(module: Any, x: Tensor, name: str) -> Tensor:
    """module(x); of a plain linear layer in the buffer `name`."""
    if not is_plain(module, x):
        result: Tensor = module(x)
        return result
    with unasked(x):
        rows = x.reshape(-1, x.shape[-1])
        out = product(module, rows, buffers.take(name, x, len(rows), len(module.weight)))
        return out.view(*x.shape[:-1], -1)


def mlp_forward(mlp: Any, hidden_state: Tensor, layer_idx: int) -> Tensor | None:
    """The forward pass of a Zamba2MLP of any release in blocks, or None where it has to be the module's own.

    hidden_state: [..., hidden_size]; layer_idx: the layer at whose position the shared block runs.
    """
    pair = mlp.gate_up_proj_adapter_list[mlp.layer_dic[layer_idx]]
    seen = type(pair) is not nn.Sequential or not (is_unwatched(pair) and is_unwatched(mlp.act_fn))
    linears = mlp.gate_up_proj, mlp.down_proj, *(() if seen else pair)
    rows = hidden_state.reshape(-1, hidden_state.shape[-1])
    if len(rows) == 1 or len(linears) != 4 or not all(is_plain(linear, rows) for linear in linears):
        return None
    gate_up_proj, down_proj, down, up = linears
    result = rows.new_empty(rows.shape)
    for x, place in in_blocks(BLOCK, rows, result):
        both = product(gate_up_proj, x, buffers.take("gate_up", x, len(x), gate_up_proj.out_features))
        add_product(both, F.linear(x, down.weight), up.weight)
        gate, factor = both.chunk(2, -1)
        product(down_proj, mlp.act_fn(gate).mul_(factor), place)
    return result.view(hidden_state.shape)
