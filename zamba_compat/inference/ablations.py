"""What a model loses without a part of it: the ablations of the Zamba2 technical report (arXiv 2411.15242)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import ZambaCompatError

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMES = "no-rope, rank-N, long"


def check(name: str) -> str:
    """An ablation's name, if it is one.

    "no-rope" leaves out the rotary embedding, "rank-N" cuts the shared blocks' adapters to rank N, "long" sets
    use_long_context, which rescales the rotary base from 4,096 to 16,384 tokens.

    Raises:
        ZambaCompatError: another name.
    """
    if name in ("no-rope", "long") or rank_of(name):
        return name
    raise ZambaCompatError(f"{name!r} is no ablation.", remedy=f"Use one of {NAMES}, with a rank of 1 or more for N.")


def rank_of(name: str) -> int | None:
    """N of "rank-N"; None where the name is another."""
    number = name.removeprefix("rank-")
    return int(number) if number != name and number.isascii() and number.isdigit() and int(number) else None


def changed(config: Any, name: str, where: str) -> Any:
    """The config with which a model is to be built; the same one where that is not what changes.

    Raises:
        ZambaCompatError: the model has nothing of what is to be left out.
    """
    if config.model_type != "zamba2":
        raise ZambaCompatError(
            f"{name} is an ablation of Zamba2, and this is {config.model_type!r}.",
            where=where,
            remedy="Leave --ablate out for this model.",
        )
    rank = rank_of(name)
    if rank is not None:
        if rank >= config.adapter_rank:
            raise ZambaCompatError(
                f"Its adapters have rank {config.adapter_rank}.",
                where=where,
                remedy=f"Give a rank below {config.adapter_rank}.",
            )
        return config
    if not config.use_mem_rope:
        raise ZambaCompatError(
            f"It has no rotary embedding, so {name} changes nothing.", where=where, remedy="Leave the ablation out."
        )
    if name == "long" and config.use_long_context:
        raise ZambaCompatError("It uses the long context already.", where=where, remedy="Leave the ablation out.")
    change = {"use_mem_rope": False} if name == "no-rope" else {"use_long_context": True}
    return type(config).from_dict({**config.to_dict(), **change})


def truncate_adapters(model: nn.Module, rank: int, where: str) -> None:
    """Put the best approximation of a rank in the place of every adapter, without changing its shape.

    An adapter adds up (down x), down: [r, in], up: [out, r]. The best product of a lower rank is the truncated
    singular value decomposition (Eckart and Young, Psychometrika 1, 1936), here of the r x r core that QR leaves.

    Raises:
        ZambaCompatError: adapters that are quantized.
    """
    import torch

    with torch.no_grad():
        for down, up in _adapters(model, where):
            outer, core_up = torch.linalg.qr(up.double())
            inner, core_down = torch.linalg.qr(down.double().T)
            left, values, right = torch.linalg.svd(core_up @ core_down.T)
            roots = values[:rank].sqrt()
            up.zero_()[:, :rank] = (outer @ left[:, :rank] * roots).to(up.dtype)
            down.zero_()[:rank] = ((inner @ right[:rank].T) * roots).T.to(down.dtype)


def _adapters(model: nn.Module, where: str) -> Iterator[tuple[Tensor, Tensor]]:
    """(down, up) of every adapter, each once, however many layers hold it."""
    from torch import nn

    seen = set()
    for name, module in model.named_modules():
        if not name.rpartition(".")[0].endswith("_adapter_list") or not isinstance(module, nn.Sequential):
            continue
        first, second = module
        if type(first) is not nn.Linear or type(second) is not nn.Linear:
            raise ZambaCompatError(
                f"Its adapters are quantized: {name} holds a {type(first).__name__}.",
                where=where,
                remedy="Use --load bfloat16, or float32, to cut their rank.",
            )
        if first.weight.data_ptr() not in seen:
            seen.add(first.weight.data_ptr())
            yield first.weight, second.weight
