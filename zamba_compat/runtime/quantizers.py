"""Any quantizer of transformers but bitsandbytes': torchao, quanto, compressed-tensors, GPTQ, FP8 and so on.

They replace linear modules, or their weights, by others with other tensors, before, while or after a checkpoint is
loaded, and some at the first forward. What they do to a shared block has to be done once: while such a model is built,
every position of a block gets the first one's modules, as in transformers 4.x, so that there is nothing to tie.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from zamba_compat.checkpoint.layouts.other_formats import renamed_header
from zamba_compat.layout.quant_state_names import base_of, weight_of
from zamba_compat.layout.sharing import SharingMap

from .bitsandbytes import skip_list
from .modules import one_module_per_block, one_name_per_module

if TYPE_CHECKING:
    from torch import nn

_stored_plain: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
_decompressed_once: WeakSet[nn.Module] = WeakSet()


def is_bitsandbytes(quantizer: Any) -> bool:
    """Whether a quantizer of transformers is one of bitsandbytes, which `quantized` sees to."""
    method = quantizer.quantization_config.quant_method
    return str(getattr(method, "value", method)).startswith("bitsandbytes")


def before_loading(quantizer: Any, model: nn.Module, names: Iterable[str]) -> None:
    """Get a model that is about to be quantized ready: one module per block, and what not to quantize, said in full.

    Args:
        quantizer: its config is replaced by a copy that names every module it skips, where it can.
        model: a built model on the meta device.
        names: every stored name of its checkpoint.
    """
    sharing = SharingMap.from_config(model.config)
    one_module_per_block(model)
    if quantizer.pre_quantized:
        _stored_plain[model] = plain_modules(names, sharing)
    elif hasattr(quantizer.quantization_config, "modules_to_not_convert"):
        config = copy.copy(quantizer.quantization_config)
        asked = config.modules_to_not_convert
        config.modules_to_not_convert = sorted(quantizer.get_modules_to_not_convert(model, asked))
        quantizer.quantization_config = config


def after_replacing(model: Any) -> None:
    """Forget the ties of the blocks: the modules are one, and what they hold is no longer named as the ties are."""
    sharing = SharingMap.from_config(model.config)
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.all_tied_weights_keys = {alias: first for alias, first in ties.items() if sharing.parse(alias) is None}
    decompress_once(model)


def decompress_once(model: Any) -> None:
    """Let compressed-tensors prepare a shared module once at the first forward, not again under each of its names."""
    decompression = getattr(model, "ct_decompress_hook", None)
    if decompression is not None and model not in _decompressed_once:
        hooks = model._forward_pre_hooks
        hooks[decompression.id] = _seeing_modules_once(hooks[decompression.id])
        _decompressed_once.add(model)


def _seeing_modules_once(hook: Any) -> Any:
    """compressed-tensors' hook of the first forward, which prepares a module again for each name that it has."""

    def decompress(model: Any, args: Any) -> Any:
        with one_name_per_module(model):
            return hook(model, args)

    return decompress


def modules_to_skip(model: Any, found: Iterable[str], asked: Sequence[str] | None) -> list[str]:
    """What transformers is not to quantize, so that a shared linear is either quantized at all positions or at none.

    Args:
        model: a Zamba or Zamba2 model.
        found: what transformers would skip.
        asked: what the user named, or None; the rest of `found` are its defaults, every shared tensor among them.
    """
    sharing = SharingMap.from_config(model.config)
    named = [*(asked or ()), *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    defaults = [name for name in found if name not in named]
    skipped = {*skip_list(sharing, None, defaults), *skip_list(sharing, named, ()), *_stored_plain.get(model, ())}
    return sorted(skipped)


def plain_modules(names: Iterable[str], sharing: SharingMap) -> list[str]:
    """The linears of shared blocks that a checkpoint stores unquantized, under all their names."""
    names = list(names)
    quantized = {sharing.canonical_key(base_of(name)) for name in names if weight_of(name) is not None}
    weights = {sharing.canonical_key(name) for name in names if name.endswith(".weight")}
    plain = [name for name in weights - quantized if sharing.parse(name) is not None and "norm" not in name]
    return sorted(alias.removesuffix(".weight") for name in plain for alias in sharing.aliases(name))


def without_aliases(missing: Iterable[str], model: Any) -> set[str]:
    """The names that were not loaded, without those of later positions that are the first one's modules."""
    sharing = SharingMap.from_config(model.config)

    def is_loaded(name: str) -> bool:
        first = sharing.canonical_key(name)
        if first == name:
            return False
        one, other = (model.get_submodule(key.rpartition(".")[0]) for key in (name, first))
        return one is other

    missing = set(missing)
    return {name for name in missing if not is_loaded(name)}


def rename_metadata(quantizer: Any, sources: Iterable[tuple[str, str]]) -> None:
    """Let torchao find what a file's header says of a weight under the name that the weight is loaded by.

    Args:
        quantizer: with the merged `metadata` of all files, if it reads that.
        sources: (name that is loaded, stored name) of every tensor.
    """
    metadata = getattr(quantizer, "metadata", None)
    if metadata and "tensor_names" in metadata:
        quantizer.metadata = {**metadata, **renamed_header(metadata, list(sources))}
