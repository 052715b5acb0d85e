"""What part of the model a tensor belongs to, told by its name in any layout."""

from __future__ import annotations

import re

from zamba_compat.layout.sharing import SharingMap

COMPONENTS = ("embedding", "mamba", "attention", "feed_forward", "adapters", "linear", "norms")
OTHER = "other"

# In this order: an adapter lies inside attention or feed_forward, a mixer's own norm inside the mixer.
_RULES = tuple(
    (component, re.compile(pattern))
    for component, pattern in (
        ("embedding", r"(?:\A|\.)(?:embed_tokens|embedding|lm_head|score)\."),
        ("adapters", r"_adapter_list\.|_lora_[AB]_list\."),
        ("attention", r"\.self_attn\.|\.sa\.mixer\."),
        ("feed_forward", r"\.feed_forward\.|\.mlp\.mixer\."),
        ("mamba", r"\.(?:mamba|mixer)\."),
        ("norms", r"norm\.(?:weight|bias)\Z"),
        ("linear", r"\.linear\.|\.linear_layers\.|\.block_map\."),
    )
)
_LAYER = re.compile(r"(?:.*?\.)?layers\.([0-9]{1,6})\.(.+)")
_SLOT = re.compile(r"(_adapter_list)\.[0-9]+(?=\.)")


def component_of(name: str) -> str:
    """One of `COMPONENTS`, or "other" for a name that no layout has.

    The norm inside a Mamba mixer is the mixer's; "norms" are those around mixers and blocks, and the last one. Heads
    are with the embedding.
    """
    return next((component for component, rule in _RULES if rule.search(name)), OTHER)


def kind_of(name: str, *, slots: bool = False) -> str:
    """The name of a tensor without its layer, so that the same tensor of every layer has the same one.

    Args:
        name: in transformers' layouts.
        slots: keep the number of an adapter.
    """
    match = _LAYER.fullmatch(name)
    kind = (match[2] if match else name).removeprefix("mamba_decoder.").removesuffix(".weight")
    return kind if slots else _SLOT.sub(r"\1", kind)


def layers_of(name: str, sharing: SharingMap | None) -> tuple[int, ...]:
    """The layers at which a model uses a tensor; () for one outside of the layers.

    A block is used at every layer that shares it, an adapter at its position's layer alone.
    """
    shared = None if sharing is None else sharing.parse(name)
    if shared is None or sharing is None:
        match = _LAYER.fullmatch(name)
        return (int(match[1]),) if match else ()
    if shared.adapter is not None:
        return (sharing.positions[shared.adapter].layer,)
    return sharing.layers_of(sharing.block_of(shared.layer))
