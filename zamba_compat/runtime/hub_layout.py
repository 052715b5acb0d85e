"""Open what a model is about to be loaded from, and present it in the hub layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zamba_compat.checkpoint.reading.file_kinds import refuse_directory
from zamba_compat.checkpoint.reading.files import open_regular
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import CheckpointError
from zamba_compat.layout.plan import REMEDY_DIVERGENT, Divergence, plan
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.settings import settings

from .bitsandbytes import fit_to_stored
from .quantizers import decompress_once, is_bitsandbytes, rename_metadata
from .stored import Stored
from .untie import untie

logger = logging.getLogger("zamba_compat")


@dataclass(frozen=True)
class LoaderCall:
    """A call of `_load_pretrained_model`, of whatever release: 4.x passes each argument by itself, 5.x a `load_config`.

    Attributes:
        given: the arguments by name; those of the next call when they are changed.
        config: 5.x's load_config, or None.
        files: the checkpoint's files.
        quantizer: transformers' quantizer, or None.
        device_map: None where none was given.
        folder: for what is placed on the disk.
    """

    given: dict[str, Any]
    config: Any
    files: list[str]
    quantizer: Any
    device_map: Any
    folder: str | None

    @classmethod
    def of(cls, given: dict[str, Any]) -> LoaderCall:
        """Raises CheckpointError: the index names files of other directories, or what is no regular file."""
        found = given.get("checkpoint_files", given.get("resolved_archive_file")) or ()
        files = [found] if isinstance(found, str) else list(found)
        config = given.get("load_config")
        if config is not None:
            refuse_files_elsewhere(files, config.pretrained_model_name_or_path)
            return cls(given, config, files, config.hf_quantizer, config.device_map, config.disk_offload_folder)
        refuse_files_elsewhere(files, given.get("pretrained_model_name_or_path"))
        folder = given.get("disk_offload_folder", given.get("offload_folder"))
        return cls(given, None, files, given.get("hf_quantizer"), given.get("device_map"), folder)

    @property
    def is_adapters(self) -> bool:
        """Whether an adapter of PEFT is loaded, into a model that is there already."""
        return bool(getattr(self.given["model"], "_hf_peft_config_loaded", False))

    @property
    def names_are_mapped(self) -> bool:
        """Whether the caller has said with `key_mapping` what the stored names mean."""
        if self.config is None:
            return bool(self.given.get("key_mapping"))
        mapping = self.config.weight_mapping or ()
        if not any(type(transform).__name__ == "WeightRenaming" for transform in mapping):
            return False
        from transformers.conversion_mapping import get_model_conversion_mapping

        own = get_model_conversion_mapping(self.given["model"], None, self.quantizer)
        return len(mapping) > len(own)


def refuse_files_elsewhere(files: Sequence[str], origin: object) -> None:
    """Refuse files that no honest index leads to; transformers joins whatever names it finds to the directory.

    A file may be a link: people keep weights on other disks, the hub's cache is made of links, and what is read is
    tensors alone. Names are another matter: an index names the files beside it.

    Args:
        files: the checkpoint's files.
        origin: what the model is loaded from: a directory, or a name on the hub, whose files lie in one directory.

    Raises:
        CheckpointError: a file outside of `origin`, files in several directories, or no regular file.
    """
    places = {os.path.dirname(os.path.abspath(file)) for file in files}
    local = isinstance(origin, (str, os.PathLike)) and os.path.isdir(origin)
    top = Path(os.path.abspath(os.fspath(origin))) if local else None  # type: ignore[call-overload]
    for file in files:
        if len(places) > 1 or (top is not None and top not in Path(os.path.abspath(file)).parents):
            raise CheckpointError(
                f"The index leads out of the checkpoint: {listed([str(file)])} is a path, not a file beside it.",
                where=str(origin),
                remedy="Put the shards beside the index and write their bare names.",
            )
        os.close(open_regular(Path(file), where=str(file)))


def refuse_other_files(source: str | os.PathLike[str], subfolder: str | None) -> None:
    """Say what lies in the place of weights, after loading them from a directory has failed.

    Raises:
        CheckpointError: a file of another kind, or an adapter alone.
    """
    directory = Path(source, subfolder or "")
    if directory.is_dir():
        refuse_directory(directory)


@contextmanager
def in_hub_layout(given: dict[str, Any]) -> Iterator[None]:
    """Let a call of `_load_pretrained_model`, its arguments by name, load in the hub layout; see `hub_layout`."""
    with ExitStack() as opened:
        tensors = hub_layout(LoaderCall.of(given), opened)
        if tensors is not None:
            given["state_dict"] = tensors
            replaced = {"sharded_metadata", "expected_keys"}
            if "load_config" not in given:  # 4.50 to 4.52 would read the files too, if they are several
                replaced.add("checkpoint_files")
            given.update(dict.fromkeys(replaced & given.keys()))
            if "loaded_keys" in given:
                given["loaded_keys"] = list(tensors)
        yield


def hub_layout(call: LoaderCall, opened: ExitStack) -> dict[str, Any] | None:
    """What to load a model from in the hub layout, or None when the checkpoint is in that layout already.

    When copies of shared tensors differ and the setting `divergent` is "keep", the model is untied in place first.

    Args:
        call: the model in it is built, its config the checkpoint's.
        opened: keeps the files open until loading is done.

    Returns:
        name -> tensor, or for 5.x what it reads a slice of a safetensors file from.

    Raises:
        MissingTensorError: a shared tensor is stored nowhere, or other names than the model's are stored.
        CheckpointError: damaged files, a tensor in two of them, copies that contradict each other in dtype or shape,
            adapters that are not merged.
        DivergentCopiesError: copies differ and the setting `divergent` is "error".
    """
    model, quantizer, state_dict, files = call.given["model"], call.quantizer, call.given.get("state_dict"), call.files
    if call.is_adapters or (state_dict is None and (not files or files[0].endswith(".gguf"))):
        return None
    if state_dict is not None and not state_dict:
        return None  # this asks for an initialised model
    decompress_once(model)
    stored = Stored(state_dict, files, opened)
    patterns = None if call.config is not None else call.given.get("key_mapping")
    if patterns:  # 4.x looks for the model's prefix before it maps the names
        stored.map(patterns)
        call.given["key_mapping"] = None
    elif not call.names_are_mapped:
        stored.rename(model)
    if quantizer is not None and is_bitsandbytes(quantizer):
        fit_to_stored(model, stored.names, quantizer.quantization_config, stored.where)
    sharing = SharingMap.from_config(model.config)
    layout = plan(stored.names, sharing, where=stored.where)
    if layout.is_identity and not stored.renamed:
        return None
    choice = settings().divergent
    if sharing.model_type == "zamba" and choice == "keep":
        choice = "error"  # one block by definition: there is no config that keeps the copies apart
    layout, computed, divergences = layout.resolve(stored.read, choice)
    if divergences:
        _warn(divergences, choice, stored.where)
    if layout.sharing != sharing:
        untie(model)
    if quantizer is not None:
        rename_metadata(quantizer, ((name, stored.renamed.get(key, key)) for name, key in layout.sources.items()))
    take = stored.read if call.config is None else stored.lazy
    return {name: computed[name] if name in computed else take(source) for name, source in layout.sources.items()}


def _warn(divergences: list[Divergence], choice: str, where: str | None) -> None:
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
