"""accelerate's load_checkpoint_in_model for Zamba and Zamba2: any layout, each shared block in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from zamba_compat.checkpoint.reading.location import SUFFIXES, locate
from zamba_compat.checkpoint.reading.weight_map import read_index
from zamba_compat.errors import CheckpointError, MissingTensorError

from .device_map import place_of, prepare
from .hub_layout import LoaderCall, hub_layout
from .offload import Source
from .stored import Stored


def load_in_model(original: Any, model: Any, checkpoint: str | os.PathLike[str], **options: Any) -> Any:
    """Load a checkpoint into a model that may be on the meta device; `device_map.dispatching` finishes it.

    Args:
        original: what load_checkpoint_in_model was; called for other models, without a device map, and for the 8-bit
            offload that is accelerate's own.
        model: of any head.
        checkpoint: a directory, an index or a file of weights.
        options: what load_checkpoint_in_model takes beside.

    Raises:
        MissingTensorError: a tensor of the model is stored nowhere, and it would stay without a value.
        CheckpointError: see `hub_layout.hub_layout`; or tensors that are not the model's, and options["strict"].
    """
    device_map = options.get("device_map")
    ours = getattr(getattr(model, "config", None), "model_type", None) in ("zamba2", "zamba")
    if not ours or not device_map or options.get("offload_8bit_bnb"):
        return original(model, checkpoint, **options)
    import torch
    from accelerate.utils import set_module_tensor_to_device

    files = _files(checkpoint)
    dtype = options.get("dtype")
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."))
    folder = options.get("offload_folder")
    model.tie_weights()
    with ExitStack() as opened:
        call = LoaderCall({"model": model}, None, files, None, device_map, folder)
        tensors = hub_layout(call, opened)
        if tensors is None:
            stored = Stored(None, files, opened)
            tensors = {name: stored.read(name) for name in stored.names}
        places = prepare(model, device_map, Source(None, files), folder)
        names = model.state_dict().keys()
        strange = []
        for stored_name, tensor in tensors.items():
            name = _in_model(stored_name, names)
            if name is None:
                strange.append(stored_name)
                continue
            place = place_of(places, name)
            value = None if place == "meta" else tensor
            set_module_tensor_to_device(model, name, "cpu" if place is None else place, value=value, dtype=dtype)
    if strange and options.get("strict"):
        raise CheckpointError(
            f"{len(strange)} tensors are not the model's: {', '.join(strange[:6])}.",
            where=str(checkpoint),
            remedy="Use the config that belongs to them, or pass strict=False.",
        )
    model.tie_weights()
    empty = [name for name, p in model.named_parameters() if p.is_meta and place_of(places, name) != "meta"]
    if empty:
        raise MissingTensorError(
            f"{len(empty)} tensors of the model are stored nowhere: {', '.join(empty[:6])}.",
            where=str(checkpoint),
            remedy="The checkpoint is incomplete: download or convert it again.",
        )
    return None


def _in_model(name: str, names: Mapping[str, Any] | Any) -> str | None:
    variants = (name, f"model.{name}", name.removeprefix("model."))
    return next((variant for variant in variants if variant in names), None)


def _files(checkpoint: str | os.PathLike[str]) -> list[str]:
    location = locate(checkpoint)
    if not location.is_index:
        return [str(location.file)]
    index = read_index(location.file, SUFFIXES[location.format], where=str(location.file))
    return [str(Path(location.directory, shard)) for shard in index.shards]
