"""PyTorch's own threads for loops in C, as team.h has them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_pointer = ctypes.c_void_p


class Team(ctypes.Structure):
    """The functions of OpenMP, and how many threads PyTorch would take."""

    _fields_ = (("parallel", _pointer), ("number", _pointer), ("given", _pointer), ("threads", ctypes.c_int))


def team() -> Team | None:
    """The threads that a call may use; None where PyTorch runs on another OpenMP than GNU's."""
    import torch

    functions = _functions()
    return None if functions is None else Team(*functions, torch.get_num_threads())


@cache
def _functions() -> tuple[ctypes.c_void_p, ...] | None:
    import torch

    try:
        openmp = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        names = openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads
    except (OSError, AttributeError):
        return None
    return tuple(ctypes.cast(function, _pointer) for function in names)
