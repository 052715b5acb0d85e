"""PyTorch's own threads for loops in C, as team.h has them; and the loops that run in them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from zamba_compat.settings import setting

from . import library

_pointer = ctypes.c_void_p
_Loops = TypeVar("_Loops")


class Team(ctypes.Structure):
    """The functions of OpenMP, how many threads PyTorch would take, and how rows are read, see team.h."""

    _fields_ = (
        *((name, _pointer) for name in ("parallel", "number", "given")),
        *((name, ctypes.c_int) for name in ("threads", "together", "wide")),
    )


def team() -> Team | None:
    """The threads that a call may use; None where PyTorch runs on another OpenMP than GNU's."""
    import torch

    return _of(torch.get_num_threads())


@cache
def _of(threads: int) -> Team | None:
    functions, found = _functions(), library()
    if functions is None or found is None:
        return None
    return Team(*functions, threads, found.zamba_compat_together(), found.zamba_compat_wide() and not _is_held())


def _is_held() -> bool:
    """Whether PyTorch is kept from AVX-512, which keeps the loops from it, too."""
    return os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2")


@cache
def _functions() -> tuple[ctypes.c_void_p, ...] | None:
    import torch

    try:
        openmp = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        names = openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads
    except (OSError, AttributeError):
        return None
    return tuple(ctypes.cast(function, _pointer) for function in names)


def available(kind: str, make: Callable[[ctypes.CDLL], _Loops]) -> _Loops | None:
    """What `make` makes of the library, once; None where its loops of a kind cannot be had, or are switched off.

    Also while torch.jit.trace looks on, which sees no loop in C.
    """
    import torch

    if torch.jit.is_tracing() or not setting("native"):  # type: ignore[attr-defined,no-untyped-call]
        return None
    made: _Loops | None = _made(kind, make)
    return made


@cache
def _made(kind: str, make: Callable[[ctypes.CDLL], Any]) -> Any:
    found = library()
    runs = found is not None and getattr(found, f"zamba_compat_{kind}_kind")() and team() is not None
    return make(found) if found is not None and runs else None
