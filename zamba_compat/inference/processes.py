"""Items split over the processes that `accelerate launch` or torchrun started, and gathered in their own order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def rank() -> int:
    """This process's number; 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(device: str) -> str:
    """One GPU for each process of a machine, where there are any; other devices are left alone."""
    import torch

    if device not in ("auto", "cuda") or world_size() == 1 or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def group() -> Iterator[None]:
    """Inside, the processes can gather objects; nothing happens where there is one."""
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        if own:
            dist.destroy_process_group()


def spread(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """`work` of every item, in the items' order, each computed by one process; every process gets all.

    Which process an item falls to changes nothing: it is worked on alone, and results are put back in order.
    """
    size = world_size()
    mine = [(index, work(item)) for index, item in enumerate(items) if index % size == rank()]
    if size == 1:
        return [result for _, result in mine]
    import torch.distributed as dist

    gathered: list[list[tuple[int, Result]]] = [[] for _ in range(size)]
    dist.all_gather_object(gathered, mine)
    return [result for _, result in sorted((pair for part in gathered for pair in part), key=lambda pair: pair[0])]
