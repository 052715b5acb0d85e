"""bitsandbytes and shared blocks: which linears are quantized, and one quant state per block.

Nothing here imports bitsandbytes: its modules are recognised by their class names.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError
from zamba_compat.layout.bitsandbytes_limits import refuse_fp4
from zamba_compat.layout.quant_state_names import holds_values, is_bitsandbytes, weight_of
from zamba_compat.layout.sharing import SharingMap
from zamba_compat.settings import settings

if TYPE_CHECKING:
    from torch import nn

_QUANTIZED = ("Linear4bit", "Linear8bitLt")


def is_quantized(module: object) -> bool:
    """Whether a module is a bitsandbytes linear, or one derived from it."""
    return any(base.__name__ in _QUANTIZED for base in type(module).__mro__)


def skip_list(sharing: SharingMap, requested: Iterable[str] | None, default: Iterable[str]) -> list[str]:
    """The modules to leave unquantized, so that a shared linear is either quantized at all its positions or at none.

    Args:
        sharing: the model's map.
        requested: `llm_int8_skip_modules` as the user gave it, or None.
        default: what transformers would skip by itself. It holds every tied parameter, the shared blocks too.

    Returns:
        module names. Shared ones are in it when they were requested under any of their names, or when the setting
        `quantize_shared` is off.
    """
    if requested is None:
        names = [name for name in default if sharing.parse(name) is None]
    else:
        names = [alias for name in requested for alias in _everywhere(sharing, name)]
    if not settings().quantize_shared:
        names += [f"model.layers.{layer}.{sharing.stem}" for layer in sharing.hybrid_layers]
    return sorted(set(names))


def _everywhere(sharing: SharingMap, name: str) -> list[str]:
    """A module's name, and with it the shared modules it covers under all their names."""
    shared = sharing.parse(name) or sharing.parse(f"{name}.{sharing.stem}")
    if shared is None:
        return [name]
    covered = f"{shared.prefix}layers.{shared.layer}.{sharing.stem}"
    return [name, *sharing.aliases(f"{covered}.{shared.suffix}" if shared.suffix else covered)]


def with_skip_list(quantization_config: Any, model: nn.Module, default: Iterable[str]) -> Any:
    """A copy of the BitsAndBytesConfig that names every module it skips.

    Said in full, the list is saved with the checkpoint, and releases that would skip all tied parameters read it too.

    Raises:
        UnsupportedReleaseError: the installed bitsandbytes cannot do what is asked for.
    """
    refuse_fp4(quantization_config)
    chosen = copy.copy(quantization_config)
    sharing = SharingMap.from_config(model.config)
    chosen.llm_int8_skip_modules = skip_list(sharing, quantization_config.llm_int8_skip_modules, default)
    return chosen


def fit_to_stored(model: nn.Module, names: Collection[str], quantization_config: Any, where: str | None = None) -> None:
    """Take quantization back from the linears whose stored weights are not quantized, before they are loaded.

    A checkpoint that was quantized without this package holds its shared blocks in 16 bits and does not say so.

    Args:
        model: a built model, its linears replaced by those of bitsandbytes, its parameters on the meta device.
        names: every stored name.
        quantization_config: its `llm_int8_skip_modules` is brought up to date.
        where: what to call the checkpoint in errors.

    Raises:
        CheckpointError: a quant state without the module that it is for.
    """
    sharing = SharingMap.from_config(model.config)
    parts = filter(is_bitsandbytes, names)
    states = {sharing.canonical_key(weight) for weight in map(weight_of, parts) if weight is not None}
    if not states:
        return
    weights = {sharing.canonical_key(name) for name in names if name.endswith(".weight")}
    plain = [
        name
        for name, module in _modules(model)
        if is_quantized(module)
        and (weight := sharing.canonical_key(f"{name}.weight")) in weights
        and weight not in states
    ]
    for name in plain:
        _replace_by_linear(model, name)
    if plain:
        skipped = quantization_config.llm_int8_skip_modules or []
        quantization_config.llm_int8_skip_modules = sorted({*skipped, *plain})
    unread = [
        weight
        for name, module in _modules(model)
        if not is_quantized(module) and (weight := sharing.canonical_key(f"{name}.weight")) in states & weights
    ]
    if unread:
        raise CheckpointError(
            f"{', '.join(unread[:4])}{' and others are' if len(unread) > 4 else ' is'} stored quantized, and "
            "llm_int8_skip_modules says that it is not.",
            where=where,
            remedy="Take the module out of llm_int8_skip_modules, in config.json or in the BitsAndBytesConfig.",
        )


def share_states(model: nn.Module) -> None:
    """Let the modules of a block's positions share their 8-bit state, after loading and tying.

    The first forward moves the quantized weight from the parameter into the module's `state`. Where each position has
    modules of its own over one parameter, they need one state; where positions share the modules, they have it.
    """
    for module in filter(is_quantized, model.modules()):
        weight: Any = module.weight
        # Where bitsandbytes before 0.48 left it empty, the forward would quantize the quantized weight.
        if getattr(weight, "SCB", None) is not None and weight.CB is None:
            weight.CB = weight.data
    for module, canonical in _tied_modules(model):
        if is_quantized(canonical) and hasattr(canonical, "state"):
            module.state = canonical.state


def once(state_dict: Mapping[str, Any], sharing: SharingMap) -> dict[str, Any]:
    """A state dict without the copies of tied tensors: each under its canonical name, quant states with the weights.

    A tensor under a later name that is another tensor than the canonical one's (a LoRA weight of one position, say)
    stays.
    """

    def name(key: str) -> str:
        head = key.removesuffix("lm_head.weight")
        return f"{head}model.embed_tokens.weight" if head != key else sharing.canonical_key(key)

    copies = {
        key
        for key, tensor in state_dict.items()
        if (canonical := name(key)) != key and _same(tensor, state_dict.get(canonical))
    }
    values = {weight_of(key) for key in copies if holds_values(key)}
    copies |= {
        key for key in state_dict if (weight_of(key) in copies or weight_of(key) in values) and name(key) in state_dict
    }
    return {key: tensor for key, tensor in state_dict.items() if key not in copies}


def _same(tensor: Any, other: Any) -> bool:
    if tensor is other:
        return True
    if type(tensor) is not type(other) or tensor.shape != other.shape or tensor.device != other.device:
        return False
    if hasattr(tensor, "__tensor_flatten__"):  # a quantized tensor, which has no storage of its own
        names = tensor.__tensor_flatten__()[0]
        return names == other.__tensor_flatten__()[0] and all(
            _same(getattr(tensor, name), getattr(other, name)) for name in names
        )
    return bool(tensor.data_ptr() == other.data_ptr())


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules(remove_duplicate=False) if hasattr(module, "weight")]


def _tied_modules(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs of a later position's module and its canonical one, where both hold the same weight."""
    sharing = SharingMap.from_config(model.config)
    modules = dict(_modules(model))
    for name, module in modules.items():
        canonical = modules.get(sharing.canonical_key(f"{name}.weight").removesuffix(".weight"))
        if canonical is not None and canonical is not module and canonical.weight is module.weight:
            yield module, canonical


def _replace_by_linear(model: nn.Module, name: str) -> None:
    from torch import nn

    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    old: Any = getattr(owner, last)
    if not is_quantized(old):  # a shared module, replaced under another of its names
        return
    dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    linear = nn.Linear(old.in_features, old.out_features, old.bias is not None, device="meta", dtype=dtype)
    setattr(owner, last, linear.requires_grad_(False))
