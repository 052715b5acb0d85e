"""The tensors that a model is loaded from, by whatever names its checkpoint has for them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from zamba_compat.checkpoint.layouts.foreign_names import names_in_model
from zamba_compat.checkpoint.reading.files import open_regular
from zamba_compat.checkpoint.reading.headers import read_header
from zamba_compat.checkpoint.reading.pickled import unpickle
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import CheckpointError


class Stored:
    """The tensors a model is loaded from: a state dict, or checkpoint files.

    A .safetensors file is opened when its first tensor is read; its header alone says the names, and is checked.

    Attributes:
        where: what to call the checkpoint in messages.
        names: every stored name, in stored order.
        file_of: the .safetensors file of every name that is in one.
        renamed: name -> the one that the checkpoint has for it, where that is another.
    """

    def __init__(self, state_dict: Mapping[str, Any] | None, files: Sequence[str], opened: ExitStack) -> None:
        self.where = None if not files else str(Path(files[0]).parent if len(files) > 1 else files[0])
        self._read: dict[str, Callable[[], Any]] = {}
        self._slice: dict[str, Callable[[], Any]] = {}
        self.file_of: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
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

    def rename(self, model: Any) -> None:
        """Call the tensors by the names that `model` has for them.

        Raises:
            MissingTensorError, CheckpointError: see `foreign_names.own_names`.
        """
        self._call(names_in_model(model, self.names, self.read, self.where))

    def map(self, patterns: Mapping[str, str]) -> None:
        """Call the tensors as a caller's `key_mapping` does: the first pattern that a name has is replaced in it."""
        names = {}
        for name in self.names:
            pattern = next((pattern for pattern in patterns if re.search(pattern, name)), None)
            names[name if pattern is None else re.sub(pattern, patterns[pattern], name)] = name
        self._call(names)

    def _call(self, names: Mapping[str, str]) -> None:
        """Take other names for the tensors: those -> the ones they have."""
        read, slices, files = self._read, self._slice, self.file_of
        self._read = {own: read[name] for own, name in names.items()}
        self._slice = {own: slices[name] for own, name in names.items() if name in slices}
        self.file_of = {own: files[name] for own, name in names.items() if name in files}
        self.renamed = {own: name for own, name in names.items() if own != name}

    def _open(self, file: str, opened: ExitStack) -> None:
        if str(file).endswith(".safetensors"):

            @cache
            def handle() -> Any:
                from safetensors import safe_open

                return opened.enter_context(safe_open(file, framework="pt", device="cpu"))

            for name in names_in(file):
                self._refuse_second(name, file)
                self._read[name] = lambda name=name: handle().get_tensor(name)  # type: ignore[misc]
                self._slice[name] = lambda name=name: handle().get_slice(name)  # type: ignore[misc]
                self.file_of[name] = str(file)
            return
        for name, tensor in unpickle(Path(file), where=str(file)).items():
            self._refuse_second(name, file)
            self._read[name] = lambda tensor=tensor: tensor  # type: ignore[misc]

    def _refuse_second(self, name: str, file: str) -> None:
        if name in self._read:
            remedy = "Keep the right one only, or write the checkpoint again."
            raise CheckpointError(f"Tensor {listed([name])} is in another file too.", where=str(file), remedy=remedy)


def names_in(file: str) -> list[str]:
    """The names in a .safetensors file, whose header is checked as every command does."""
    fd = open_regular(Path(file), where=str(file))
    try:
        return [tensor.name for tensor in read_header(fd, shard=Path(file).name, where=str(file)).tensors]
    finally:
        os.close(fd)
