"""Open what a model is about to be loaded from, and present it in the hub layout."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from .quantized import fit_to_stored
from .rehydrate import REMEDY_DIVERGENT, Divergence, plan
from .settings import settings
from .sharing import SharingMap
from .untie import untie

logger = logging.getLogger("zamba_compat")

_HEADER_LIMIT = 100_000_000  # bytes; the safetensors library refuses longer headers


class Stored:
    """The tensors a model is loaded from: a state dict, or checkpoint files.

    A .safetensors file is opened when its first tensor is read; its header alone says the names.

    Attributes:
        where: what to call the checkpoint in messages.
        names: every stored name, in stored order.
        file_of: the .safetensors file of every name that is in one.
    """

    def __init__(self, state_dict: Mapping[str, Any] | None, files: Sequence[str], opened: ExitStack) -> None:
        self.where = None if not files else str(Path(files[0]).parent if len(files) > 1 else files[0])
        self._read: dict[str, Callable[[], Any]] = {}
        self._slice: dict[str, Callable[[], Any]] = {}
        self.file_of: dict[str, str] = {}
        if state_dict is not None:
            self._read = {name: (lambda tensor=tensor: tensor) for name, tensor in state_dict.items()}  # type: ignore[misc]
        else:
            for file in files:
                self._open(file, opened)

    @property
    def names(self) -> list[str]:
        return list(self._read)

    def read(self, name: str) -> Any:
        """The tensor `name`; mapped from its file, not copied, where the format allows."""
        return self._read[name]()

    def lazy(self, name: str) -> Any:
        """What the 5.x loader takes instead of a tensor: a slice that reads when it is indexed."""
        return self._slice.get(name, self._read[name])()

    def _open(self, file: str, opened: ExitStack) -> None:
        if str(file).endswith(".safetensors"):

            @cache
            def handle() -> Any:
                from safetensors import safe_open

                return opened.enter_context(safe_open(file, framework="pt", device="cpu"))

            for name in _header_names(file) or handle().keys():
                self._read[name] = lambda name=name: handle().get_tensor(name)  # type: ignore[misc]
                self._slice[name] = lambda name=name: handle().get_slice(name)  # type: ignore[misc]
                self.file_of[name] = str(file)
            return
        import torch

        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files in the format before zip archives cannot be mapped
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        for name, tensor in tensors.items():
            self._read[name] = lambda tensor=tensor: tensor  # type: ignore[misc]


def loader_arguments(given: Mapping[str, Any]) -> tuple[list[str], Any]:
    """The checkpoint's files and transformers' quantizer (or None), from a call of `_load_pretrained_model`.

    Args:
        given: the arguments by name, of whatever release: 4.x passes each by itself, 5.x a `load_config`.
    """
    files = given.get("checkpoint_files", given.get("resolved_archive_file")) or ()
    config = given.get("load_config")
    quantizer = given.get("hf_quantizer") if config is None else config.hf_quantizer
    return [files] if isinstance(files, str) else list(files), quantizer


def hub_layout(
    model: Any,
    state_dict: Mapping[str, Any] | None,
    files: str | Sequence[str] | None,
    opened: ExitStack,
    *,
    lazy: bool,
    quantizer: Any = None,
) -> dict[str, Any] | None:
    """What to load `model` from in the hub layout, or None when the checkpoint is in that layout already.

    When copies of shared tensors differ and the setting `divergent` is "keep", `model` is untied in place first.

    Args:
        model: a built Zamba2 model, its config the checkpoint's.
        state_dict: tensors by name, or None to read `files`.
        files: the checkpoint's files, .safetensors or .bin.
        opened: keeps the files open until loading is done.
        lazy: return slices of safetensors files instead of tensors.
        quantizer: transformers' quantizer, if the model is to be loaded quantized.

    Raises:
        MissingTensorError: a shared tensor is stored nowhere.
        CheckpointError: copies that contradict each other in dtype or shape.
        DivergentCopiesError: copies differ and the setting `divergent` is "error".
    """
    names = [files] if isinstance(files, str) else list(files or ())
    if state_dict is None and (not names or str(names[0]).endswith(".gguf")):
        return None
    stored = Stored(state_dict, names, opened)
    if quantizer is not None:
        fit_to_stored(model, stored.names, quantizer.quantization_config, stored.where)
    sharing = SharingMap.from_config(model.config)
    layout = plan(stored.names, sharing, where=stored.where)
    if layout.is_identity:
        return None
    choice = settings().divergent
    if sharing.model_type == "zamba" and choice == "keep":
        choice = "error"  # one block by definition: there is no config that keeps the copies apart
    layout, computed, divergences = layout.resolve(stored.read, choice)
    if divergences:
        _tell(divergences, choice, stored.where)
    if layout.sharing != sharing:
        untie(model)
    take = stored.lazy if lazy else stored.read
    return {name: computed[name] if name in computed else take(source) for name, source in layout.sources.items()}


def _header_names(file: str) -> list[str]:
    """The names in a .safetensors file (uint64 header length, little-endian, then JSON); none if it is malformed.

    Nothing is validated here: a file without names is left to the library, which says what is wrong with it.
    """
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length)) if length <= _HEADER_LIMIT else {}
        except (ValueError, RecursionError):
            header = {}
    return [name for name in header if name != "__metadata__"] if isinstance(header, dict) else []


def _tell(divergences: list[Divergence], choice: str, where: str | None) -> None:
    done = {
        "keep": "every position keeps its own copy (num_mem_blocks = number of positions, more memory)",
        "first": "the copy of the first layer is used",
        "mean": "the mean of the copies is used",
    }[choice]
    worst = max(divergences, key=lambda d: d.distance)
    logger.warning(
        "%s: %d shared tensors are stored in copies that differ, by up to %.2g of their norm (%s); %s. %s",
        where or "state_dict",
        len(divergences),
        worst.distance,
        worst.key,
        done,
        REMEDY_DIVERGENT,
    )
