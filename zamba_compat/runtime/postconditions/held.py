"""What a loaded model holds, and what a saved one has written: compared with the files and the sharing map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from zamba_compat.layout.plan import Plan, plan
from zamba_compat.layout.quant_state_names import holds_values, weight_of
from zamba_compat.layout.rotary import rescaled_theta, stored_theta
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.runtime.bitsandbytes import is_quantized
from zamba_compat.runtime.stored import Stored
from zamba_compat.settings import settings

from . import Fault
from .sampled import differs

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def shared_once(model: Any) -> list[Fault]:
    """Every parameter of a shared block is one and the same at all positions of its block."""
    sharing = SharingMap.from_config(model.config)
    present = {
        f"{path}.{name}": parameter
        for path, module in model.named_modules(remove_duplicate=False)
        if sharing.stem in path
        for name, parameter in module._parameters.items()
        if parameter is not None
    }
    for name, parameter in present.items():
        canonical = sharing.canonical_key(name)
        if present.get(canonical) is not parameter:
            return [Fault("tying", f"{name} is not {canonical}, which it shares")]
    return []


def quantized(model: Any, source: Mapping[str, Any]) -> list[Fault]:
    """Linears of shared blocks are quantized by bitsandbytes, if the model is and the user did not leave them out."""
    from torch import nn

    quantizer = getattr(model, "hf_quantizer", None)
    config = getattr(quantizer, "quantization_config", None)
    wanted = getattr(config, "load_in_4bit", False) or getattr(config, "load_in_8bit", False)
    if not wanted or getattr(quantizer, "pre_quantized", False) or not settings().quantize_shared:
        return []
    left_out = tuple(getattr(source.get("quantization_config"), "llm_int8_skip_modules", None) or ())
    sharing = SharingMap.from_config(model.config)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear) and sharing.parse(name) and not is_quantized(module):
            aliases = sharing.aliases(name)
            if not any(f"{word}." in f"{alias}." for word in left_out for alias in aliases):
                return [Fault("quantization", f"{name} was not quantized")]
    return []


def rotary(model: Any) -> list[Fault]:
    """use_long_context has its effect on the rotary frequencies, once."""
    config = model.config
    if not (getattr(config, "use_long_context", False) and getattr(config, "use_mem_rope", False)):
        return []
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    embedding = getattr(getattr(model, "model", model), "rotary_emb", None)
    inv_freq = getattr(embedding, "inv_freq", None)
    if rope.get("rope_type", "default") != "default" or inv_freq is None or inv_freq.is_meta:
        return []
    frequencies = inv_freq.float().cpu()
    base = rescaled_theta(config, stored_theta(config))
    count = len(frequencies)
    last = base ** (-(count - 1) / count)
    if abs(frequencies[-1].item() / last - 1) < 1e-3:
        return []
    return [Fault("config", "use_long_context has no effect on the rotary frequencies, or another")]


def placed(model: Any) -> list[Fault]:
    """What accelerate has put on disk or on the CPU can be brought back: its index knows every name."""
    known: dict[int, set[str]] = {}
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        one: Any
        for one in getattr(hook, "hooks", (hook,)):
            weights: Any = getattr(one, "weights_map", None)
            if not getattr(one, "offload", False) or not hasattr(weights, "dataset"):
                continue
            names = known.setdefault(id(weights.dataset), set(weights.dataset))
            for name, _ in module.named_parameters(recurse=one.place_submodules):  # all of them are read at a forward
                if f"{weights.prefix}{name}" not in names:
                    return [Fault("placement", f"{weights.prefix}{name} is offloaded, and nothing knows where to")]
    return []


def as_stored(model: Any, source: Mapping[str, Any]) -> list[Fault]:
    """What the model holds is what the checkpoint stores: a row of every shared tensor, and of every fourth other.

    Raises:
        MissingTensorError: a shared tensor is stored nowhere.
    """
    given = source.get("state_dict")
    files = [] if given is not None else files_of(source)
    if not given and not files:
        return []
    with ExitStack() as opened:
        stored = Stored(given, files, opened)
        modules = dict(model.named_modules(remove_duplicate=False))
        foreign = any(name.rpartition(".")[0] not in modules for name in stored.names)
        if foreign and not source.get("key_mapping"):
            stored.rename(model)
        return list(_differences(model, stored, settings().divergent))[:3]


def written(model: Any, directory: Any, state_dict: Mapping[str, Any] | None) -> list[Fault]:
    """What was saved is what the model holds, each shared tensor once, with a config that says how it is shared."""
    files = _files_in(Path(directory))
    if not files:
        return []
    found: list[Fault] = []
    with ExitStack() as opened:
        stored = Stored(None, files, opened)
        held = {*stored.names, *(weight_of(name) for name in stored.names if holds_values(name))}
        orphans = [name for name in stored.names if (w := weight_of(name)) is not None and w not in held]
        if orphans:
            found.append(Fault("saving", f"{orphans[0]} was saved without its weight"))
        sharing = SharingMap.from_config(Path(directory) / "config.json")
        layout = plan(stored.names, sharing, complete=False)
        copies = [name for name in layout.unused if weight_of(name) is None]
        if copies:
            found.append(Fault("saving", f"{copies[0]} was saved beside {sharing.canonical_key(copies[0])}"))
        kept = {sharing.canonical_key(name) for name, _ in model.named_parameters() if sharing.parse(name)}
        lost = sorted(kept - layout.sources.keys() - held)
        if lost and state_dict is None:
            found.append(Fault("saving", f"{lost[0]} was not saved"))
        if not found and state_dict is None:
            found += [Fault("saving", f.what) for f in _differences(model, stored, "first")][:3]
    return found


def files_of(source: Mapping[str, Any]) -> list[str]:
    """The files of weights that `from_pretrained` was given: a directory's, or those in the hub's cache."""
    name = source.get("pretrained_model_name_or_path")
    if name is None or source.get("gguf_file"):
        return []
    directory = Path(name, source.get("subfolder") or "")
    if directory.is_dir():
        return _files_in(directory, source.get("variant"))
    from huggingface_hub import try_to_load_from_cache

    where = {"cache_dir": source.get("cache_dir"), "revision": source.get("revision")}
    config = try_to_load_from_cache(str(name), str(Path(source.get("subfolder") or "", "config.json")), **where)
    return _files_in(Path(config).parent, source.get("variant")) if isinstance(config, str) else []


def _files_in(directory: Path, variant: str | None = None) -> list[str]:
    import json

    for name in WEIGHTS:
        stem, _, ending = name.rpartition(".")
        name = f"{stem}.{variant}.{ending}" if variant else name
        stem, _, ending = name.rpartition(".")
        index = directory / f"{stem.partition('.')[0]}.{ending}.index{f'.{variant}' if variant else ''}.json"
        if (directory / name).is_file():
            return [str(directory / name)]
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [str(directory / shard) for shard in dict.fromkeys(shards)]
    return []


def _differences(model: Any, stored: Stored, choice: str) -> Iterator[Fault]:
    sharing = SharingMap.from_config(model.config)
    modules = dict(model.named_modules(remove_duplicate=False))
    others = 0
    for name, source in _pairs(plan(stored.names, sharing), choice):
        if sharing.stem not in name:
            others += 1
            if others % 4 != 1:  # loaders go wrong by kind, by layer or by file, and the time is the user's
                continue
        for here in (name, f"model.{name}", name.removeprefix("model.")):
            path, _, attribute = here.rpartition(".")
            if path in modules and (held := getattr(modules[path], attribute, None)) is not None:
                if differs(held, stored.lazy(source), modules[path], attribute):
                    yield Fault("loading", f"{here} is not what is stored as {source}")
                break
        else:
            if sharing.parse(name) and weight_of(name) is None and source.endswith(".weight"):
                yield Fault("loading", f"the model has no {name}")


def _pairs(layout: Plan, choice: str) -> Iterator[tuple[str, str]]:
    """The parameters and the stored names that fill them; where copies are kept, each of them."""
    several = {key for key, copies in layout.groups.items() if len(copies) > 1}
    for name, source in layout.sources.items():
        if not (choice == "mean" and name in several):
            yield name, source
    if choice == "keep":
        for key in several:
            shared = layout.sharing.parse(key)
            if shared is not None and shared.adapter is None:
                yield from ((name, name) for name in layout.groups[key].values())
