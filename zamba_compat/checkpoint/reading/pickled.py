"""Read pickled weights (.bin, .pt) without running anything that is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_compat.checkpoint.dtypes import from_torch
from zamba_compat.errors import CheckpointError

from .file_kinds import LENGTH, refuse_other_kinds
from .headers import TensorInfo
from .strict_json import listed

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_REMEDY = "Save the model's state dict as safetensors where it was trained."


def load(path: Path, *, where: str) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, mapped from the file where its format allows. Raises as `unpickle`, and
    CheckpointError for anything beside tensors.
    """
    return _tensors(unpickle(path, where=where), where)


def unpickle(path: Path, *, where: str) -> Any:
    """What is pickled, if it is tensors and plain containers, mapped from the file where its format allows.

    torch.load(weights_only=True) builds tensors and plain containers and refuses every other name in the pickle.

    Raises:
        CheckpointError: anything else in the pickle, an unreadable file, or a torch before 2.6, whose
            weights_only can be got around (CVE-2025-32434).
    """
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise CheckpointError(
            f"torch {torch.__version__} does not read pickled files safely.",
            where=where,
            remedy="Install torch 2.6 or newer, or convert the file to safetensors.",
        )
    with path.open("rb") as file:
        refuse_other_kinds(file.read(LENGTH), where=where, pickle=True)
    try:
        return _unpickle(path)
    except Exception as error:  # a damaged or hostile pickle raises nearly anything
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}" if named else f"{type(error).__name__} while it was read"
        raise CheckpointError(
            f"It is not a readable pickle of tensors alone, so nothing of it was loaded: {reason}.",
            where=where,
            remedy=_REMEDY,
        ) from None  # torch's own message advises to run the pickle


def describe(tensors: Mapping[str, Tensor], *, shard: str, where: str) -> list[TensorInfo]:
    """One entry per tensor, in stored order.

    Raises:
        CheckpointError: a tensor that is not plain and dense, has a dtype that safetensors has not, or is larger
            than its own storage.
    """
    infos = []
    for name, tensor in tensors.items():
        at = f"{where}, tensor {listed([name])}"
        dtype = from_torch(tensor.dtype)
        if dtype is None or str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu":
            what = f"A {tensor.layout} tensor of {tensor.dtype} on {tensor.device} cannot be stored as safetensors."
            raise CheckpointError(what, where=at, remedy=_REMEDY)
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes > tensor.untyped_storage().nbytes():
            what = f"Its shape {tuple(tensor.shape)} repeats the few elements that are stored."
            raise CheckpointError(what, where=at, remedy="Save it with .contiguous().")
        infos.append(TensorInfo(name, dtype, tuple(tensor.shape), shard, -1, nbytes))
    return infos


def _unpickle(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files in the format before zip archives cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(content: Any, where: str) -> dict[str, Tensor]:
    import torch

    if isinstance(content, Mapping) and not any(isinstance(value, torch.Tensor) for value in content.values()):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"It holds a {type(content).__name__}, no state dict.", where=where, remedy=_REMEDY)
    odd = [
        str(name)
        for name, value in content.items()
        if not isinstance(name, str) or type(value) not in (torch.Tensor, torch.nn.Parameter)
    ]
    if odd:
        raise CheckpointError(f"Not tensors with a name: {listed(odd)}.", where=where, remedy=_REMEDY)
    return {name: value.detach() for name, value in content.items()}
