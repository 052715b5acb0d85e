"""The tensors of a checkpoint that was saved from within a wrapper, under the model's own names.

| wrapper | what it makes of `model.layers.0.` |
|---|---|
| torch's DataParallel and DistributedDataParallel, DeepSpeed | `module.model.layers.0.` |
| torch.compile, of the model or of one of its modules | `_orig_mod.model.layers.0.`, `model.layers.0._orig_mod.` |
| FSDP, activation checkpointing | `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.` anywhere |
| PEFT | `base_model.model.model.layers.0.`, `.base_layer.` in the modules that it adapts |
| a model that holds the language model or its backbone | `backbone.layers.0.`, `model.model.layers.0.` |

No module of Zamba has one of the first four names, so they are dropped wherever they stand. What stands in front of a
name of the model is dropped if it consists of words by which models hold one another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NoReturn

from zamba_compat.checkpoint.reading.file_kinds import ADAPTER_ALONE
from zamba_compat.checkpoint.reading.strict_json import listed
from zamba_compat.errors import CheckpointError, MissingTensorError
from zamba_compat.layout.copies import same_bits
from zamba_compat.layout.sharing import SharingMap

_WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "base_layer")
)
_HOLDERS = frozenset(("base_model", "model", "backbone", "pretrained_model", "language_model", "transformer"))
_ADAPTERS = ("lora_", "modules_to_save", "original_module")
_SHOWN = 6


def own_names(
    stored: Collection[str],
    targets: Collection[str],
    sharing: SharingMap,
    prefix: str,
    *,
    read: Callable[[str], Any],
    where: str | None = None,
) -> dict[str, str]:
    """The model's own names of what is stored: own name -> stored name; names that mean nothing to it are kept.

    A checkpoint all of whose names lack `prefix`, or have it where the model does not, comes back as it is: the loaders
    know this much.

    Args:
        stored: every stored name.
        targets: the names of the model's parameters, those of later positions among them.
        sharing: the model's sharing map.
        prefix: what the model puts before the names of its backbone: "model." or "".
        read: the tensor of a stored name; called where two of them are one parameter's.
        where: what to call the checkpoint in errors.

    Raises:
        MissingTensorError: names of another kind are stored instead of the model's, or beside parts of them.
        CheckpointError: adapters of PEFT that are not merged, or different tensors for one parameter.
    """
    modules = {name.rpartition(".")[0] for name in targets} - {""}

    def known(name: str) -> bool:
        name = sharing.canonical_key(name)
        return name in targets or any(above in modules for above in _above(name))

    found: dict[str, str] = {}
    strange: list[str] = []
    for name in stored:
        own = name if name in targets else next(filter(known, _candidates(name, prefix)), None)
        if own is None:
            strange.append(name)
        if own != name and _is_adapters(name):
            _refuse_adapters(stored, where)
        own = name if own is None else own
        if own in found and not _equal(read(found[own]), read(name)):
            raise CheckpointError(
                f"{listed([found[own], name])} are different tensors for one parameter, {own}.",
                where=where,
                remedy="Keep the right one only.",
            )
        found.setdefault(own, name)
    missing = _missing(found, targets, sharing)
    mistaken = [
        name for name in strange if any(sharing.canonical_key(tail) in missing for tail in _tails(name, prefix))
    ]
    if stored and (mistaken or len(strange) == len(stored)):
        _refuse_files_elsewhere(mistaken or strange, sorted(missing), where)
    ways = {_way(name, own, prefix) for own, name in found.items() if name != own}
    kept = any(name == own and name.startswith(f"{prefix}layers.") for own, name in found.items())
    if len(found) == len(stored) and (not ways or (not kept and ways in ({"added"}, {"removed"}))):
        return {name: name for name in stored}
    return found


def names_in_model(
    model: Any, stored: Collection[str], read: Callable[[str], Any], where: str | None = None
) -> dict[str, str]:
    """`own_names` of the tensors that `model` is loaded from, or was."""
    base = f"{model.base_model_prefix}."
    prefix = base if hasattr(model, model.base_model_prefix) else ""
    sharing = SharingMap.from_config(model.config)
    return own_names(stored, set(model.state_dict()), sharing, prefix, read=read, where=where)


def _candidates(name: str, prefix: str) -> Iterator[str]:
    """What a stored name may mean, best first."""
    words = [word for word in name.split(".") if word not in _WRAPPERS]
    for start in range(len(words)):
        yield ".".join(words[start:])
        yield prefix + ".".join(words[start:])
        if words[start] not in _HOLDERS:
            return


def _tails(name: str, prefix: str) -> Iterator[str]:
    words = [word for word in name.split(".") if word not in _WRAPPERS]
    for start in range(len(words)):
        yield ".".join(words[start:])
        yield prefix + ".".join(words[start:])


def _above(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _missing(found: Iterable[str], targets: Iterable[str], sharing: SharingMap) -> set[str]:
    """The parameters of which nothing is stored: no tensor of the module itself, heads left out."""
    stored = set(map(sharing.canonical_key, found))
    held = {above for name in stored for above in _above(name)}
    wanted = {sharing.canonical_key(name) for name in targets if "layers." in name or "embed_tokens" in name}
    return {name for name in wanted if name not in stored and not _holds(name, held)}


def _holds(name: str, held: Collection[str]) -> bool:
    # A quantized weight is stored as other tensors of its module; the parameters of a mixer are its own.
    module, _, last = name.rpartition(".")
    return last == "weight" and module in held


def _way(name: str, own: str, prefix: str) -> str:
    """How the loaders' own renaming makes `own` of `name`, if it does."""
    if prefix + name == own:
        return "added"
    return "removed" if name == f"model.{own}" and not prefix else "none"


def _is_adapters(name: str) -> bool:
    return any(word.startswith(_ADAPTERS) for word in name.split("."))


def _refuse_adapters(stored: Collection[str], where: str | None) -> NoReturn:
    adapters = [name for name in stored if _is_adapters(name)]
    if len(adapters) == len(stored):
        raise CheckpointError(ADAPTER_ALONE.what, where=where, remedy=ADAPTER_ALONE.remedy)
    raise CheckpointError(
        f"{len(adapters)} tensors belong to adapters of PEFT (LoRA) that are not merged: {_few(adapters)}.",
        where=where,
        remedy="Call merge_and_unload() on the model that PEFT made, and save what it returns.",
    )


def _refuse_files_elsewhere(strange: list[str], missing: list[str], where: str | None) -> NoReturn:
    raise MissingTensorError(
        f"{len(missing)} tensors of the model are stored nowhere ({_few(missing)}), and {len(strange)} stored names "
        f"are not the model's: {_few(strange)}.",
        where=where,
        remedy="Rename them to the model's own names, or save the model again with save_pretrained.",
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _equal(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and (a is b or same_bits(a, b)))
