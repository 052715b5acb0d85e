"""A quantized checkpoint in other layouts, name by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from zamba_compat import SharingMap


def rewrite(source: Path, out: Path, layout: str) -> Path:
    """Copy a checkpoint of one file.

    Args:
        layout: "expanded", every block at every layer that uses it, "partial", every block at the last one alone, or
            "hub", as it is.
    """
    sharing = SharingMap.from_config(source)

    def names(name: str) -> tuple[str, ...]:
        if layout == "hub":
            return (name,)
        aliases = sharing.aliases(name)
        return aliases if layout == "expanded" else aliases[-1:]

    with safe_open(source / "model.safetensors", "pt") as file:
        tensors = {new: file.get_tensor(name).clone() for name in file.keys() for new in names(name)}  # noqa: SIM118
        metadata = dict(file.metadata())
    if "tensor_names" in metadata:  # torchao's
        entries = {new: words for name, words in metadata.items() if "." in name for new in names(name)}
        kept = {name: words for name, words in metadata.items() if "." not in name}
        metadata = {**kept, **entries, "tensor_names": json.dumps(list(entries))}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata)
    shutil.copy(source / "config.json", out)
    return out
