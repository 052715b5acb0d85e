"""Products of bfloat16 matrices with a single row, as every step of decoding makes them, at the speed of the memory.

oneDNN, which PyTorch hands them to on a CPU, reads the weights of a one-row product at half of the memory's speed
(measured on two cores of an AMD EPYC with AVX512-BF16: 17 to 20 GB/s of 34 GB/s; of a Xeon with AMX: 14 of 26). The
loop in C of cpu/native/rows.c reads 31 to 35 and 25. Every row is summed by one thread in one order, so the bits do not
depend on how many threads there are, nor on what other threads compute meanwhile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .function_mode import PLAIN, Linears, isa_limit, onednn_on_x86
from .native import rows as native
from .workspace import buffers


def gains(weight: Tensor, rows: int) -> bool:
    """Whether products of `rows` rows with matrices like `weight` gain from `product`."""
    return (
        rows == 1
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and native.loop() is not None
    )


def within() -> Linears:
    """Within it, F.linear of a single row goes through `product`."""
    return Linears(product, lambda rows: rows == 1)


def is_bfloat16(model: Any) -> bool:
    """Whether a Zamba2ForCausalLM's layers hold their weights in bfloat16, none quantized; told by the first one."""
    found: Any = model.model.layers[0]
    found = getattr(found, "mamba_decoder", found)  # a hybrid layer's
    for name in ("mamba", "in_proj", "weight", "dtype"):  # whatever somebody has put there instead
        found = getattr(found, name, None)
    return found is torch.bfloat16


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor | None:
    """x @ weight.T, summed in float32 and rounded once; None where it has to be PyTorch's own.

    x: [1, in_features], else there is None. weight: [out_features, in_features]. bias: None. out: [1, out_features].
    """
    with torch._C.DisableTorchFunction():  # each of PyTorch's functions would ask whether it is another here
        found = native.loop()
        if (
            found is None
            or len(x) != 1
            or bias is not None  # PyTorch adds it before the sum is rounded
            or not all(type(each) in PLAIN for each in (x, weight))
            or x.dtype != torch.bfloat16
            or x.device.type != "cpu"
            or not native.is_matrix(weight)
            or weight.shape[1] != x.shape[1]
        ):
            return None
        out = x.new_empty(1, len(weight)) if out is None else out
        room = buffers.take("row", x, x.shape[1], dtype=torch.float32)
        found.product(weight, x[0].contiguous(), room, out)
        return out


@cache
def has_tiles() -> bool:
    """x86 with AMX, since PyTorch 2.6; false where oneDNN is kept from it by ONEDNN_MAX_CPU_ISA."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    measured = release >= (2, 6) and onednn_on_x86()
    return measured and supported is not None and bool(supported()) and _isa_allows("AMX")


def _isa_allows(part: str) -> bool:
    limit = isa_limit()
    return limit in ("ALL", "DEFAULT", "") or part in limit
