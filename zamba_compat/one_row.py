"""Products of 16-bit matrices with a single row, as every step of decoding makes them, at the speed of the memory.

oneDNN, which PyTorch hands bfloat16 products to on a CPU, reads the weights of a one-row product at half of the
speed that PyTorch's own kernel does (measured on two cores of an AMD EPYC with AVX512-BF16: 17 to 20 GB/s of
34 GB/s against 31 to 35). PyTorch takes its own where oneDNN is switched off, which can be done only for the whole
process: for the time of one step, and not by two threads at once. Meanwhile another thread's products are right,
but slower.

With tile instructions (AMX) oneDNN's product of a matrix and a vector is the fastest, and that is asked for instead:
17 to 25 GB/s, where the product of matrices reads 12 to 18 of the memory's 26, and PyTorch's own kernel 13.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from .linears import Linears, isa_limit, onednn_on_x86

_switching = threading.Lock()


def gains(weight: Tensor, rows: int) -> bool:
    """Whether products of `rows` rows with matrices like `weight` gain from `own_kernel`."""
    return (
        rows == 1
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and (_has_kernel() or has_tiles())
    )


def faster(model: Any) -> AbstractContextManager[object] | None:
    """The context in which a Zamba2ForCausalLM's products of one row are fastest here.

    With tiles every function of PyTorch passes by it, thousands a token: for a quantized model, whose head alone is a
    product in bfloat16, that takes longer than it saves, and there is None.
    """
    if not has_tiles():
        return own_kernel()
    return Linears(_vector_product, lambda rows: rows == 1) if is_bfloat16(model) else None


def is_bfloat16(model: Any) -> bool:
    """Whether a Zamba2ForCausalLM's layers hold their weights in bfloat16, none quantized; told by the first one."""
    found: Any = model.model.layers[0]
    found = getattr(found, "mamba_decoder", found)  # a hybrid layer's
    for name in ("mamba", "in_proj", "weight", "dtype"):  # whatever somebody has put there instead
        found = getattr(found, name, None)
    return found is torch.bfloat16


def _vector_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [1, in_features]; returns [1, out_features]."""
    if bias is not None:  # PyTorch adds it before the result is rounded
        return torch.addmm(bias, x, weight.T)
    return torch.mv(weight, x[0])[None]


@contextmanager
def own_kernel() -> Iterator[None]:
    """PyTorch's own kernels instead of oneDNN's. Changes nothing while another thread, or a caller, is in it."""
    if not _switching.acquire(blocking=False):
        yield
        return
    try:
        if not torch._C._get_mkldnn_enabled():
            yield
            return
        torch._C._set_mkldnn_enabled(False)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(True)
    finally:
        _switching.release()


@cache
def has_tiles() -> bool:
    """x86 with AMX, since PyTorch 2.6; false where oneDNN is kept from it by ONEDNN_MAX_CPU_ISA."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return _is_measured() and supported is not None and bool(supported()) and _isa_allows("AMX")


@cache
def _has_kernel() -> bool:
    """x86 since PyTorch 2.6, where PyTorch can tell that there is no AMX."""
    return (
        _is_measured()
        and hasattr(torch._C, "_set_mkldnn_enabled")
        and hasattr(torch.cpu, "_is_amx_tile_supported")
        and not has_tiles()
    )


def _is_measured() -> bool:
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return release >= (2, 6) and onednn_on_x86()


def _isa_allows(part: str) -> bool:
    limit = isa_limit()
    return limit in ("ALL", "DEFAULT", "") or part in limit
