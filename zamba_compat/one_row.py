"""Products of 16-bit matrices with a single row, as every step of decoding makes them, at the speed of the memory.

oneDNN, which PyTorch hands bfloat16 products to on a CPU, reads the weights of a one-row product at half of the
speed that PyTorch's own kernel does (measured on two cores of an AMD EPYC with AVX512-BF16: 17 to 20 GB/s of
34 GB/s against 31 to 35). PyTorch takes its own where oneDNN is switched off, which can be done only for the whole
process: for the time of one step, and not by two threads at once. Meanwhile another thread's products are right,
but slower.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

_switching = threading.Lock()


def gains(weight: Tensor, rows: int) -> bool:
    """Whether products of `rows` rows with matrices like `weight` gain from `own_kernel`."""
    return (
        rows == 1
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and _has_kernel()
    )


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
def _has_kernel() -> bool:
    """x86 since PyTorch 2.6. Not where oneDNN has tile instructions (AMX), on which nothing was measured."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < (2, 6) or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch._C, "_set_mkldnn_enabled")
        and has_tiles is not None
        and not has_tiles()
    )
