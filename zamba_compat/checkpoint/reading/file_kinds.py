"""What a file that should hold weights is instead, told by its first bytes, and what to do about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from zamba_compat.errors import CheckpointError

from .strict_json import LIMIT

LENGTH = 512  # bytes that are looked at
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")


class Kind(NamedTuple):
    """What a file is, one sentence, and what to do."""

    what: str
    remedy: str


ADAPTER_ALONE = Kind(
    "This is an adapter of PEFT (LoRA), not a model.",
    "Load the model that it adapts, add the adapter with PeftModel.from_pretrained, then merge_and_unload() and "
    "save_pretrained().",
)


def kind_of(start: bytes, *, pickle: bool = False) -> Kind | None:
    """What the file that begins with `start` is; None where it may hold what its name says.

    Args:
        start: its first `LENGTH` bytes.
        pickle: whether its name says that it is pickled.
    """
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LIMIT:
        return None  # a safetensors header, whatever its length spells
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return Kind(
            "This is a git-lfs pointer, not the weights: it says where they lie.",
            "Run `git lfs pull` in its repository, or download the checkpoint with `hf download`.",
        )
    if start.startswith(b"GGUF"):
        return Kind(
            "This is a GGUF file, which llama.cpp reads; no Zamba is loaded from one.",
            "Use the safetensors checkpoint that it was made of.",
        )
    if text.startswith(_PAGES):
        return Kind(
            "This is a web page, not the weights: what was downloaded is a page about the file, or an error.",
            "Download the file itself, with `hf download` or from the page's download link.",
        )
    if not pickle and start.startswith(_PICKLED):
        return Kind(
            "This is a pickled file under the name of a safetensors file.",
            "Rename it to pytorch_model.bin, or save the weights as safetensors.",
        )
    return None


def refuse_other_kinds(start: bytes, *, where: str, pickle: bool = False) -> None:
    """Raises CheckpointError where `kind_of` has something to say."""
    kind = kind_of(start, pickle=pickle)
    if kind is not None:
        raise CheckpointError(kind.what, where=where, remedy=kind.remedy)


def refuse_adapter_alone(directory: Path, *, where: str) -> None:
    """Raises CheckpointError where `directory` holds an adapter of PEFT; to be called where it holds no weights."""
    if any(os.path.lexists(directory / name) for name in _ADAPTERS):
        raise CheckpointError(ADAPTER_ALONE.what, where=where, remedy=ADAPTER_ALONE.remedy)


def refuse_directory(directory: Path) -> None:
    """Look at the weights that lie in `directory`, after loading them failed.

    Raises:
        CheckpointError: one of them is something else.
    """
    weights = [path for path in sorted(directory.iterdir()) if path.suffix in _WEIGHTS and path.is_file()]
    for path in weights:
        with path.open("rb") as file:
            refuse_other_kinds(file.read(LENGTH), where=str(path), pickle=path.suffix != ".safetensors")
    if all(path.name in _ADAPTERS for path in weights):
        refuse_adapter_alone(directory, where=str(directory))
