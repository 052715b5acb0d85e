"""A parent of a merge, read under its names in the hub layout whichever layout of transformers it is stored in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zamba_compat.errors import CheckpointError, DivergentCopiesError

_CONVERT = "Convert it first: zamba-compat convert-checkpoint SRC DST"


def stored_names(directory: str | Path) -> Mapping[str, str] | None:
    """Name in the hub layout -> name it is stored under; None for a checkpoint that is no Zamba2 language model.

    Reads headers, and the tensors that are stored in several copies.

    Raises:
        ZambaCompatError: a checkpoint that is incomplete, quantized, in one of Zyphra's layouts, or has copies of a
            shared tensor that differ.
    """
    from zamba_compat.checkpoint.layouts.contents import read_contents
    from zamba_compat.checkpoint.reading.opening import open_checkpoint
    from zamba_compat.checkpoint.reading.strict_json import parse_object

    config = Path(directory, "config.json")
    if not config.is_file():
        return None
    if parse_object(config.read_bytes(), where=str(config), what="a config").get("model_type") != "zamba2":
        return None
    with open_checkpoint(directory, allow_pickle=True) as checkpoint:
        contents = read_contents(checkpoint)
        if contents.quantized:
            raise CheckpointError(
                "It is quantized, and quantized weights cannot be merged.",
                where=contents.where,
                remedy="Merge the checkpoint it was made of.",
            )
        if contents.layout.startswith("zyphra"):
            raise CheckpointError(
                f"It is in the layout {contents.layout}, which mergekit cannot read.",
                where=contents.where,
                remedy=f"{_CONVERT}.",
            )
        divergences = contents.plan.divergences(checkpoint.read)
        if divergences:
            worst = max(divergences, key=lambda divergence: divergence.distance)
            raise DivergentCopiesError(
                f"{len(divergences)} shared tensors are stored in copies that differ, {worst.key} by "
                f"{worst.distance:.2%}: which of them is to be merged?",
                where=contents.where,
                remedy=f"{_CONVERT} --resolve mean (or first, karcher, absorb).",
            )
        return dict(contents.plan.sources)


def hub_loader(loader: Any) -> Any:
    """A `mergekit.io.LazyTensorLoader` of a parent, as one that knows the names of the hub layout and no others.

    The loader itself is returned for another architecture, and where every name is stored as it should be.

    Raises:
        ZambaCompatError: see `stored_names`.
    """
    from mergekit.io.lazy_tensor_loader import LazyTensorLoader

    found = stored_names(loader.index.base_path)
    paths = loader.index.tensor_paths
    if found is None or (found.keys() == paths.keys() and all(name == stored for name, stored in found.items())):
        return loader
    names = found

    class HubLoader(LazyTensorLoader):  # type: ignore[misc]
        """Reads through the loader of the files."""

        def get_tensor(self, key: str, *args: Any, **kwargs: Any) -> Any:
            return loader.get_tensor(names.get(key, key), *args, **kwargs)

        def flush(self) -> None:
            loader.flush()

    index = dataclasses.replace(loader.index, tensor_paths={name: paths[stored] for name, stored in names.items()})
    return HubLoader(index, lazy_unpickle=loader.lazy_unpickle)
