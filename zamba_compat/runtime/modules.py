"""One module object per shared block, or one per position: what a tool that adds to modules sees.

Either way the parameters are tied. PEFT wraps modules, so it adds one adapter per block to the first form and one per
position to the second. Of transformers, 4.x builds the first form and 5.x the second.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import ZambaCompatError
from zamba_compat.layout.sharing import SharingMap

from .bitsandbytes import is_quantized

if TYPE_CHECKING:
    from torch import nn

_WRAPPERS = ("BaseTunerLayer", "AuxiliaryTrainingWrapper", "PeftModel", "BaseTuner")  # PEFT's, by the names in an MRO


def share_modules(model: nn.Module) -> None:
    """Let every position of a block hold the canonical layer's module, in place.

    Logits, names and what is saved stay the same. The modules of the later positions are dropped, and hooks that were
    put on them with them. Nothing happens where a block has one module already.

    PEFT finds a block under its canonical layer's name only. Adapters that were trained on one form have to be loaded
    into the same form: loaded into the other, some positions go without, and PEFT does no more than warn.

    Args:
        model: a Zamba or Zamba2 model of any head, in full precision or quantized, before PEFT wraps it.

    Raises:
        ConfigError: the model is another one.
        ZambaCompatError: PEFT has wrapped it, or a position's parameters are not those of the canonical layer.
    """
    base = _unwrapped_base(model, "share_modules")
    own = [(layer, block, first) for layer, block, first in _later_positions(base) if block is not first]
    for layer, block, first in own:
        _check_tied(layer, block, first)
    if own:
        _install_output_hooks(base)
    stem = SharingMap.from_config(base.config).stem
    for layer, _, first in own:
        setattr(base.layers[layer], stem, first)


def one_module_per_block(model: nn.Module) -> None:
    """As `share_modules`, of a model that is about to be loaded: nothing is tied yet, and nothing compared."""
    base: Any = getattr(model, "model", model)
    later = [(layer, first) for layer, block, first in _later_positions(base) if block is not first]
    if later:
        _install_output_hooks(base)
    stem = SharingMap.from_config(base.config).stem
    for layer, first in later:
        setattr(base.layers[layer], stem, first)


def separate_modules(model: nn.Module) -> None:
    """Let every position of a block hold modules of its own over the canonical layer's parameters, in place.

    The parameters stay tied: one tensor, one quant state and, in 8 bits, one MatmulLtState per block. Logits, names
    and what is saved stay the same. Nothing happens where each position has its modules already.

    Args:
        model: a Zamba or Zamba2 model of any head, in full precision or quantized, before PEFT wraps it.

    Raises:
        ConfigError: the model is another one.
        ZambaCompatError: PEFT has wrapped it.
    """
    base = _unwrapped_base(model, "separate_modules")
    stem = SharingMap.from_config(base.config).stem
    for layer, block, first in _later_positions(base):
        if block is first:
            setattr(base.layers[layer], stem, _same_parameters(first, base.config))


def keep_apart(model: nn.Module) -> bool:
    """Untie the positions of a model whose positions PEFT has given adapters of their own, before it merges them.

    Each adapter would be added to the one tied parameter, and every position would compute with the sum of all.

    Args:
        model: a Zamba or Zamba2 model of any head, with PEFT's layers in it.

    Returns:
        whether it had to: the model now has num_mem_blocks = number of positions.

    Raises:
        ZambaCompatError: a Zamba (v1) model, for which no config keeps the positions apart.
    """
    base: Any = getattr(model, "model", model)
    sharing = SharingMap.from_config(base.config)
    blocks = dict.fromkeys(getattr(base.layers[layer], sharing.stem) for layer in sharing.hybrid_layers)
    users = Counter(id(parameter) for block in blocks for parameter in block.parameters())
    adapted = (p for block in blocks for name, p in block.named_parameters() if ".base_layer." in name)
    if not any(users[id(parameter)] > 1 for parameter in adapted):
        return False
    if sharing.model_type == "zamba":
        raise ZambaCompatError(
            "Adapters of several positions cannot be merged into the one block that Zamba (v1) has.",
            remedy="Keep the adapters apart from the model, or train one adapter per block: call share_modules first.",
        )
    from .untie import untie

    untie(model)
    return True


def ties(model: Any, sharing: SharingMap) -> Iterator[tuple[str, str]]:
    """Each module that is another name for the parameters of an earlier one, and that one."""
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    for position in sharing.positions:
        alias, canonical = (f"{prefix}layers.{n}.{sharing.stem}" for n in (position.layer, position.canonical_layer))
        if alias != canonical:
            yield alias, canonical
    if sharing.tied_embeddings and hasattr(model, "lm_head"):
        yield "lm_head", f"{prefix}embed_tokens"


@contextmanager
def one_name_per_module(model: Any) -> Iterator[list[str]]:
    """Take modules out of the tree where they appear a second time; yields the names taken out.

    In 4.x all positions of a block are one module object, and hooks attached to it under each name would read an
    offloaded block once per name at every use.
    """
    sharing = SharingMap.from_config(model.config)
    saved: list[tuple[Any, dict[str, Any]]] = []
    hidden = []
    try:
        for alias, canonical in ties(model, sharing):
            if model.get_submodule(alias) is model.get_submodule(canonical):
                parent = model.get_submodule(alias.rpartition(".")[0])
                saved.append((parent, dict(parent._modules)))
                del parent._modules[alias.rpartition(".")[2]]
                hidden.append(alias)
        yield hidden
    finally:
        for parent, modules in saved:
            parent._modules.clear()
            parent._modules.update(modules)


def _unwrapped_base(model: nn.Module, caller: str) -> Any:
    """The model that holds the layers. Raises ZambaCompatError if PEFT has been there."""
    wrapped = next((name for name, module in model.named_modules() if _is_wrapper(module)), None)
    if wrapped is not None:
        raise ZambaCompatError(
            "PEFT has wrapped this model already, and its adapters are bound to the modules.",
            where=wrapped or type(model).__name__,
            remedy=f"Call {caller} before get_peft_model or PeftModel.from_pretrained, or after unload().",
        )
    return getattr(model, "model", model)


def _is_wrapper(module: nn.Module) -> bool:
    return any(base.__name__ in _WRAPPERS for base in type(module).__mro__)


def _later_positions(base: Any) -> Iterator[tuple[int, nn.Module, nn.Module]]:
    """For every position but the canonical ones: the layer, its shared module and the canonical layer's."""
    sharing = SharingMap.from_config(base.config)
    for position in sharing.positions:
        if position.layer != position.canonical_layer:
            layers = (base.layers[layer] for layer in (position.layer, position.canonical_layer))
            block, first = (getattr(layer, sharing.stem) for layer in layers)
            yield position.layer, block, first


def _check_tied(layer: int, block: nn.Module, first: nn.Module) -> None:
    tensors, wanted = (dict(module.named_parameters(remove_duplicate=False)) for module in (block, first))
    apart = [name for name in wanted.keys() | tensors.keys() if tensors.get(name) is not wanted.get(name)]
    if apart:
        raise ZambaCompatError(
            f"{len(apart)} parameters are not tied to those of the block's first layer, {min(apart)} for one: one "
            "module cannot hold both.",
            where=f"layer {layer}",
            remedy="Save the model and load it again, which ties equal copies and keeps others as blocks of their own.",
        )


def _install_output_hooks(base: Any) -> None:
    # From 5.4 on, each module that outputs attentions gets a hook for every name it has, at the first forward that
    # asks for them. Put there now, a module that is about to get more names has one.
    if not getattr(base, "_can_record_outputs", None):
        return
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:
        return
    maybe_install_capturing_hooks(base)


def _same_parameters(block: nn.Module, config: Any) -> nn.Module:
    """A copy of the modules that holds the same parameters, buffers and quantization states, and the same config."""
    kept = [config, *block.parameters(), *block.buffers()]
    for module in filter(is_quantized, block.modules()):
        kept += [value for name in ("state", "quant_state") if (value := getattr(module, name, None)) is not None]
    return copy.deepcopy(block, {id(value): value for value in kept})
