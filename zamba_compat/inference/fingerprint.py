"""A short word for what a model's directory holds, so that answers of two models are not mixed under one name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from zamba_compat.checkpoint.reading.location import locate
from zamba_compat.errors import CheckpointError

# What a model and its tokenizer are loaded from; answers or reports may lie in the same directory.
_FILES = (
    *("*.safetensors", "*.bin", "*.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
)
_PIECES, _PIECE = 256, 4096


def fingerprint(name: str) -> str | None:
    """A hash of the model's files: names, sizes, and content; of a file of more than 1 MiB 256 pieces, evenly spread.

    Weights that were merged or trained anew differ nearly everywhere, so that is enough to tell them apart, and takes
    no longer for a large model. A change within less than a 256th of a file may go unseen.

    Args:
        name: a checkpoint's directory, or its name on the hub.

    Returns:
        hex digits; None where there is no such checkpoint, or it cannot be read: loading it will tell why.
    """
    try:
        directory = locate(name).directory
        files = sorted({path for pattern in _FILES for path in directory.glob(pattern) if path.is_file()})
        found = hashlib.sha256()
        for path in files:
            found.update(f"{path.name}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
            _add(found, path)
    except (CheckpointError, OSError):
        return None
    return found.hexdigest()


def _add(found: hashlib._Hash, path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _PIECES * _PIECE:
            found.update(file.read())
            return
        for number in range(_PIECES):
            file.seek(number * (size - _PIECE) // (_PIECES - 1))
            found.update(file.read(_PIECE))
