"""Which parent of a merge has which tensor, and what SLERP's configuration asks of a tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

# Written by old releases; computed, never trained.
_BUFFERS = (".inv_freq", "position_ids", "token_type_ids", ".masked_bias", ".attn.bias", ".attention.bias")
_HEADS = ("lm_head.weight", "lm_head.bias")
_LAYER = re.compile(r"\.\d+(?=\.)")
# Loader -> the type in its model's config, and the names in its files.
_read: WeakKeyDictionary[Any, tuple[str, set[str]]] = WeakKeyDictionary()


def is_trained(name: str) -> bool:
    """Whether a tensor is a weight; buffers that a model computes by itself need no merging."""
    return not name.endswith(_BUFFERS)


def is_tied_head(name: str, config: Any) -> bool:
    """Whether a name is the head's in a model that ties it to the embedding."""
    return name in _HEADS and bool(getattr(config, "tie_word_embeddings", False))


def stores(model: Any, weight: Any, *, trust_remote_code: bool) -> bool:
    """Whether a parent has a weight, under one of its names or as something that transformers converts to it."""
    from mergekit.architecture.conversion import can_convert_checkpoint_keys
    from mergekit.io.tasks import LoaderCache

    loader = LoaderCache().get(model)
    names = [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]
    if any(name in loader.index.tensor_paths for name in names):
        return True
    if loader not in _read:  # once for a parent: it is asked for every tensor
        model_type = model.config(trust_remote_code=trust_remote_code).model_type
        _read[loader] = model_type, set(loader.index.tensor_paths)
    model_type, stored = _read[loader]
    return any(can_convert_checkpoint_keys(model_type, stored, name) for name in names)


def of_one_only(stored: Mapping[Any, Iterable[str]], known: Iterable[str]) -> dict[str, list[Any]]:
    """Names that some parents have and others lack, whatever the layer, and that the architecture does not know.

    Args:
        stored: parent -> its names.
        known: the names that are planned; what becomes of those is decided one by one.

    Returns:
        one name for each kind of tensor, such as a bias of every layer -> the parents that have it.
    """
    planned = {_LAYER.sub(".#", name) for name in known}
    kinds: dict[str, dict[Any, str]] = {}
    for parent, names in stored.items():
        for name in names:
            kinds.setdefault(_LAYER.sub(".#", name), {}).setdefault(parent, name)
    apart = [found for kind, found in kinds.items() if kind not in planned and len(found) < len(stored)]
    return {next(iter(found.values())): list(found) for found in apart}


def has_t(name: str, cfg_reader: Any) -> bool:
    """Whether mergekit's configuration gives a tensor a value of t."""
    from mergekit.config import evaluate_setting

    given = [settings["t"] for settings in cfg_reader.parameter_sources(None) if settings and "t" in settings]
    values = (evaluate_setting(name, setting, cfg_reader.t, validate=lambda value: value) for setting in given)
    return any(value is not None for value in values)
