"""What the products of a forward pass need, and what this machine gives: the limits that times are a share of."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

_BYTES = 2**30  # read at a time: no cache holds it
_SIDE = 4096  # of the matrices that are multiplied


class Work(NamedTuple):
    """Attributes: bytes: of the weights that the products read, a weight again each time; multiply_adds: theirs."""

    bytes: int
    multiply_adds: int


def products(model: Any, forward: Callable[[], Any]) -> Work:
    """What the linear layers of one call have to do, from the calls that their modules get."""
    found: list[Work] = []

    def count(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = given[0] if given else named["input"]
        rows = x.shape[:-1].numel()
        found.append(Work(stored(module.weight), rows * module.in_features * module.out_features))  # type: ignore[operator,arg-type]

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(count, with_kwargs=True).remove)
        forward()
    return Work(*map(sum, zip(*found, strict=True)))


def stored(weight: Any) -> int:
    """Bytes of a weight and, if it is quantized to 4 bits, of its scales."""
    state = getattr(weight, "quant_state", None)
    scales = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return sum(int(each.nbytes) for each in (weight, *scales))


def best(work: Callable[[], Any], times: int = 7) -> float:
    """The shortest time of several, seconds: a limit is what the machine can do, not what it does on average."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def bandwidth() -> float:
    """Bytes a second that the threads of PyTorch read from memory: the faster of a sum and a product with a vector."""
    x = torch.ones(_BYTES // 4 // _SIDE, _SIDE)
    y = torch.ones(_SIDE)
    return _BYTES / min(best(x.sum), best(lambda: torch.mv(x, y)))


def gemm_peak(dtype: torch.dtype) -> float:
    """Multiply-adds a second of PyTorch's product of two square matrices."""
    x, y = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    out = torch.empty_like(x)
    return _SIDE**3 / best(lambda: torch.mm(x, y, out=out))
