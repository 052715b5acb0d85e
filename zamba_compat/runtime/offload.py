"""The tensors of a model that lie on the disk: where accelerate reads each one, and how to get them all back.

They are read from the checkpoint itself where that is in safetensors files, under the name that is stored there; only
what is in no such file is written to the offload folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zamba_compat.errors import MissingTensorError, ZambaCompatError
from zamba_compat.layout.plan import Plan, plan
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.settings import settings

from .stored import Stored

Entry = dict[str, str]


@dataclass(frozen=True)
class Source:
    """What a model is loaded from.

    Attributes:
        state_dict: the tensors by name, None for `files`.
        files: the checkpoint's files.
        names_are_mapped: whether the caller has said what the stored names mean.
    """

    state_dict: Mapping[str, Any] | None
    files: Sequence[str]
    names_are_mapped: bool = False

    @property
    def in_safetensors(self) -> bool:
        """Whether the tensors can be read from the checkpoint whenever they are needed."""
        return self.state_dict is None and all(str(file).endswith(".safetensors") for file in self.files)


def offload_index(
    model: Any, names: Iterable[str], sharing: SharingMap, source: Source, folder: str | None
) -> dict[str, Entry]:
    """Where accelerate finds each tensor that is placed on the disk: its name -> file, name in the file and dtype.

    Every name of a shared tensor has the same entry.

    Args:
        model: the loaded model; those tensors are on the meta device, or were initialised for want of stored ones.
        names: the parameters and buffers that are placed on the disk.
        sharing: how the model shared its blocks before loading; differing copies may have untied them since.
        source: what it was loaded from.
        folder: the offload folder, for tensors that are in no safetensors file; each is written there once.

    Raises:
        MissingTensorError: a tensor is neither stored nor initialised.
        ZambaCompatError: a tensor has to be written, and there is no offload folder.
    """
    index: dict[str, Entry] = {}
    written: dict[str, Entry] = {}
    tensors = model.state_dict()
    with ExitStack() as opened:
        stored = Stored(source.state_dict, source.files, opened)
        if not source.names_are_mapped:
            stored.rename(model)
        layout, computed = _layout(model, sharing, stored)
        for name in names:
            key, stored_name = _stored_as(name, model, layout)
            if stored_name in stored.file_of and key not in computed:
                written_as = stored.renamed.get(stored_name, stored_name)
                index[name] = _entry(stored.file_of[stored_name], written_as, tensors[name].dtype)
                continue
            if key not in written:
                value = computed.get(key, tensors[name])
                if value.device.type == "meta":
                    if not stored_name:
                        raise MissingTensorError(
                            "is stored nowhere and was not initialised.", where=name, remedy="Place it on the CPU."
                        )
                    value = stored.read(stored_name)
                written[key] = _write(value.to(tensors[name].dtype), name, folder)
            index[name] = written[key]
    return index


def state_to_save(model: Any, directory: str | Path) -> dict[str, Any] | None:
    """The state dict of a model with offloaded tensors, each shared one once; None if nothing is offloaded.

    What lies in safetensors files is mapped from there, not read, unless the model holds it in another dtype.

    Raises:
        ZambaCompatError: offloaded tensors are still to be read from files in `directory`.
    """
    tensors = model.state_dict()
    loader = next(_loaders(model), None)
    if loader is None or all(tensor.device.type != "meta" for tensor in tensors.values()):
        return None
    for entry in loader.index.values():
        file = entry.get("safetensors_file")
        if file is not None and Path(file).parent.resolve() == Path(directory).resolve():
            raise ZambaCompatError(
                "offloaded tensors of this model are read from here, and saving would overwrite them.",
                where=str(file),
                remedy="Save to another directory.",
            )
    sharing = SharingMap.from_config(model.config)
    handles: dict[str, Any] = {}
    return {
        name: _onload(loader, name, tensor, handles)
        for name, tensor in tensors.items()
        if sharing.is_canonical(name) and not (name == "lm_head.weight" and sharing.tied_embeddings)
    }


def _layout(model: Any, sharing: SharingMap, stored: Stored) -> tuple[Plan, dict[str, Any]]:
    """What was loaded into the model, and what was computed for it, as `hub_layout.hub_layout` decided."""
    layout = plan(stored.names, sharing, where=stored.where)
    if SharingMap.from_config(model.config) != sharing:
        return layout.untied(), {}
    if settings().divergent == "mean":
        layout, computed, _ = layout.resolve(stored.read, "mean")
        return layout, computed
    return layout, {}


def _stored_as(name: str, model: Any, layout: Plan) -> tuple[str, str]:
    """The name in the layout of the tensor that fills parameter `name`, and its stored name ("" if there is none)."""
    prefix = f"{model.base_model_prefix}."
    canonical = layout.sharing.canonical_key(name)
    names = [canonical]
    if name == "lm_head.weight" and layout.sharing.tied_embeddings:
        names.append(f"{prefix}embed_tokens.weight")
    for key in names:
        for variant in (key, prefix + key, key.removeprefix(prefix)):
            if variant in layout.sources:
                return variant, layout.sources[variant]
    return canonical, ""


def _write(value: Any, name: str, folder: str | None) -> Entry:
    from safetensors.torch import save_file

    if folder is None:
        raise ZambaCompatError(
            "is placed on the disk and in no safetensors file.", where=name, remedy="Pass offload_folder='...'."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = str(Path(folder, f"{name}.safetensors"))
    save_file({name: value.contiguous()}, file)
    return _entry(file, name, value.dtype)


def _entry(file: str, name: str, dtype: Any) -> Entry:
    return {"safetensors_file": file, "weight_name": name, "dtype": str(dtype).removeprefix("torch.")}


def _loaders(model: Any) -> Iterator[Any]:
    """accelerate's OffloadedWeightsLoader of every hook that has one."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            loader = getattr(getattr(part, "weights_map", None), "dataset", None)
            if hasattr(loader, "index"):
                yield loader


def _onload(loader: Any, name: str, tensor: Any, handles: dict[str, Any]) -> Any:
    from safetensors import safe_open

    if tensor.device.type != "meta":
        return tensor
    if name in loader.state_dict:
        return loader.state_dict[name]
    entry = loader.index[name]
    file = entry["safetensors_file"]
    if file not in handles:
        handles[file] = safe_open(file, framework="pt", device="cpu")
    return handles[file].get_tensor(entry["weight_name"]).to(tensor.dtype)
