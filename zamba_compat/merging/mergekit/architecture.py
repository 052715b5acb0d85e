"""Zamba2 as an architecture of mergekit: which tensors a layer has, under their names in the hub layout."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from zamba_compat.layout.sharing import SharingMap

NAME = "Zamba2ForCausalLM"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def layers_of(sharing: SharingMap, key: str) -> tuple[int, ...]:
    """The layers whose computation a tensor takes part in, in depth order; none for what stands outside the layers.

    An adapter takes part at the layer of its own position, the rest of a block at every layer that uses the block,
    anything else at the layer it is named for.

    Args:
        key: a name in the hub layout.
    """
    shared = sharing.parse(key)
    if shared is None:
        match = _LAYER.match(key)
        return (int(match[1]),) if match else ()
    if shared.adapter is not None:
        return (sharing.hybrid_layers[shared.adapter],)
    return sharing.layers_of(sharing.block_of(shared.layer))


@cache
def keys_by_layer(sharing: SharingMap) -> dict[int | None, tuple[str, ...]]:
    """Layer -> the tensors that take part there, in the order of `SharingMap.hub_keys`; None -> all others.

    A shared tensor stands under every layer that uses it, so planning layer by layer meets all its values.
    """
    found: dict[int | None, list[str]] = {None: []}
    for key in sharing.hub_keys():
        for layer in layers_of(sharing, key) or (None,):
            found.setdefault(layer, []).append(key)
    return {layer: tuple(keys) for layer, keys in found.items()}


@cache
def architecture() -> Any:
    """The `mergekit.architecture.ModelArchitecture` of Zamba2, the same object at every call."""
    from mergekit.architecture.base import ModelArchitecture, ModuleArchitecture, ModuleDefinition, WeightInfo

    def weight(key: str) -> WeightInfo:
        vocabulary = key in (EMBEDDING, HEAD)
        return WeightInfo(name=key, vocabulary_axis=0 if vocabulary else None)

    def tied(config: Any) -> list[WeightInfo]:
        """A head that is the embedding, by name: mergekit-tokensurgeon asks for one."""
        if not SharingMap.from_config(config).tied_embeddings:
            return []
        return [WeightInfo(name=HEAD, vocabulary_axis=0, optional=True, tied_names=(EMBEDDING,))]

    class Zamba2Architecture(ModuleArchitecture):  # type: ignore[misc]
        """One module with all layers; see `keys_by_layer`."""

        def pre_weights(self, config: Any) -> list[WeightInfo]:
            return [weight(key) for key in self._outside(config) if "embed_tokens" in key]

        def layer_weights(self, index: int, config: Any) -> list[WeightInfo]:
            return [weight(key) for key in keys_by_layer(SharingMap.from_config(config)).get(index, ())]

        def post_weights(self, config: Any) -> list[WeightInfo]:
            return [weight(key) for key in self._outside(config) if "embed_tokens" not in key] + tied(config)

        def all_weights(self, config: Any) -> list[WeightInfo]:
            return [weight(key) for key in SharingMap.from_config(config).hub_keys()] + tied(config)

        def _outside(self, config: Any) -> tuple[str, ...]:
            return keys_by_layer(SharingMap.from_config(config))[None]

    return ModelArchitecture(
        modules={"default": ModuleDefinition(architecture=Zamba2Architecture())},
        architectures=[NAME],
        model_type="zamba2",
    )
