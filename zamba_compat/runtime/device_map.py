"""Where the tensors of a model live: one place per shared block, and where to read what lies on the disk.

A device map names modules; a shared block has as many names as positions. `normalise` gives every name the place of the
block's first user, so that loaders and hooks, which know nothing of the sharing, agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from zamba_compat.errors import ZambaCompatError
from zamba_compat.layout.sharing import SharingMap

from .hub_layout import LoaderCall
from .modules import one_name_per_module, ties
from .offload import Source, offload_index

if TYPE_CHECKING:
    from torch import nn

DeviceMap = dict[str, Any]

_waiting: WeakKeyDictionary[nn.Module, Placement] = WeakKeyDictionary()
_busy: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Placement:
    """What is decided before a model is loaded and needed when its hooks are attached.

    Attributes:
        device_map: the normalised map.
        sharing: how the model shared its blocks before loading; differing copies may have untied them since.
        source: what it is loaded from.
        folder: the offload folder, None if none was given.
    """

    device_map: DeviceMap
    sharing: SharingMap
    source: Source
    folder: str | None


def prepare(
    model: Any, device_map: Mapping[str, Any], source: Source, folder: str | None, *, quantized: bool = False
) -> DeviceMap:
    """Decide the placement of a built model that is about to be loaded; `dispatching` finishes it.

    Returns:
        the map to load by: modules on "disk" are on "meta", as nothing of theirs is to be kept or written.

    Raises:
        ZambaCompatError: something is on the disk, and the model is to be quantized, or the checkpoint is not in
            safetensors files and there is no offload folder.
    """
    sharing = SharingMap.from_config(model.config)
    placement = Placement(normalise(device_map, model, sharing), sharing, source, folder)
    on_disk = [name for name, place in placement.device_map.items() if place == "disk"]
    if on_disk and quantized:
        raise ZambaCompatError(
            f"{len(on_disk)} modules of a model to be quantized are placed on the disk.",
            where=on_disk[0] or "device_map",
            remedy="Place them on a device or the CPU: name them in device_map, or raise max_memory.",
        )
    if on_disk and folder is None and not source.in_safetensors:
        raise ZambaCompatError(
            f"{len(on_disk)} modules are placed on the disk, and the checkpoint is not in safetensors files.",
            where=on_disk[0] or "device_map",
            remedy="Pass offload_folder='...', or save the checkpoint as safetensors.",
        )
    _waiting[model] = placement
    loading = dict(placement.device_map)
    if "" in loading:  # 4.53 to 4.57 open the files on the device of "", and "meta" is none
        _split(loading, "", model)
    return {name: "meta" if place == "disk" else place for name, place in loading.items()}


@contextmanager
def loading(given: dict[str, Any]) -> Iterator[None]:
    """Let a call of `_load_pretrained_model`, its arguments by name, load by the map of `prepare`."""
    call = LoaderCall.of(given)
    places = set((call.device_map or {}).values())
    if not call.is_adapters and (len(places) > 1 or "disk" in places):
        source = Source(given.get("state_dict"), call.files, call.names_are_mapped)
        quantized = call.quantizer is not None
        device_map = prepare(given["model"], call.device_map, source, call.folder, quantized=quantized)
        if call.config is None:
            given["device_map"] = device_map
        else:
            given["load_config"] = replace(call.config, device_map=device_map)
    yield


@contextmanager
def dispatching(given: dict[str, Any]) -> Iterator[None]:
    """Let a call of accelerate's dispatch_model, its arguments by name, place each shared block once.

    That is for a model that `prepare` has seen, or that holds all its tensors; of any other nothing is changed.
    """
    model = given["model"]
    placement = None if model in _busy else _waiting.pop(model, None) or _as_given(model, given)
    if placement is None:
        yield
        return
    _busy.add(model)
    try:
        if "disk" in placement.device_map.values():
            on_disk = [name for name in model.state_dict() if place_of(placement.device_map, name) == "disk"]
            given["offload_index"] = offload_index(
                model, on_disk, placement.sharing, placement.source, placement.folder
            )
        # The mixers read the weights of their convolutions and projections directly, past these modules' own hooks.
        mixers = {type(module).__name__ for module in model.modules() if hasattr(module, "in_proj")}
        given["preload_module_classes"] = sorted({*(given.get("preload_module_classes") or ()), *mixers})
        with one_name_per_module(model) as hidden:
            given["device_map"] = {name: p for name, p in placement.device_map.items() if not _is_below(name, hidden)}
            yield
        model.hf_device_map = dict(placement.device_map)
    finally:
        _busy.discard(model)


def _as_given(model: Any, options: Mapping[str, Any]) -> Placement | None:
    """The placement that a call of dispatch_model asks for; None where there is nothing to share out, or to see to."""
    places = set((options.get("device_map") or {}).values())
    if getattr(getattr(model, "config", None), "model_type", None) not in ("zamba2", "zamba"):
        return None
    if not places or places <= {"cpu"} or options.get("offload_index") is not None:
        return None
    if any(parameter.is_meta for parameter in model.parameters()):
        return None  # somebody else has put them somewhere
    sharing = SharingMap.from_config(model.config)
    source = Source(model.state_dict(), ())
    return Placement(normalise(options["device_map"], model, sharing), sharing, source, options.get("offload_dir"))


def is_waiting(model: Any) -> bool:
    """Whether `dispatching` is still due."""
    return model in _waiting


def normalise(device_map: Mapping[str, Any], model: Any, sharing: SharingMap) -> DeviceMap:
    """The same map with each shared block, under every name, and a tied head where its first user lives.

    No entry of the result lies below another one of a different device: the deeper entry counts, and the upper one is
    replaced by entries for its other children. A block that the map does not cover is left to the library to report.

    Args:
        device_map: module or tensor name -> device, "cpu" or "disk"; "" is the whole model.
        model: any head of the model, its modules named as in the map.
        sharing: how it shares its blocks.

    Raises:
        ZambaCompatError: tensors of a module itself are on the disk and some module below it is not.
    """
    result = dict(device_map)
    for name in sorted(device_map, key=len):
        if name in result:
            _isolate(result, name, model)
    for alias, canonical in ties(model, sharing):
        place, inside = place_of(result, canonical), _inside(result, canonical)
        own = _inside(result, alias)
        covered = place is not None or inside
        if not covered or (not inside and not own and place == place_of(result, alias)):
            continue
        for name in (alias, *(alias + suffix for suffix in own)):
            result.pop(name, None)
        moved = {alias + suffix: p for suffix, p in inside.items()} if inside else {alias: place}
        result.update(moved)
        for name in moved:
            _isolate(result, name, model)
    return result


def place_of(device_map: Mapping[str, Any], name: str) -> Any:
    """The device of the longest entry that is `name` or lies above it; None if there is none."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name)


def _inside(device_map: Mapping[str, Any], module: str) -> DeviceMap:
    """The entries below a module, by what follows its name."""
    return {name[len(module) :]: place for name, place in device_map.items() if name.startswith(f"{module}.")}


def _is_below(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _isolate(device_map: DeviceMap, name: str, model: Any) -> None:
    """Split the entries above `name` until none is left that has another device, in place."""
    while name:
        above = name.rpartition(".")[0]
        while above and above not in device_map:
            above = above.rpartition(".")[0]
        if device_map.get(above, device_map[name]) == device_map[name]:
            return
        _split(device_map, above, model)


def _split(device_map: DeviceMap, name: str, model: Any) -> None:
    """Replace an entry by entries for what its module holds directly, in place; existing ones stay."""
    place = device_map.pop(name)
    module = model.get_submodule(name)
    prefix = f"{name}." if name else ""
    tensors = [t for t, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
    if tensors and place == "disk":
        raise ZambaCompatError(
            f"{', '.join(tensors)} cannot be on the disk without the modules below.",
            where=f"device_map[{name!r}]",
            remedy="Give the module one place.",
        )
    for child in (*tensors, *(child for child, _ in module.named_children())):
        device_map.setdefault(f"{prefix}{child}", place)
