"""Save each shared block once, at its canonical layer.

Symptom:  Zamba2: save_pretrained raises RuntimeError "The weights trying to be saved contained shared tensors ...".
          Zamba (v1): the block is written under the alphabetically last of its names. A PreTrainedModel that holds a
          backbone of either: the same error.
Cause:    the patterns that Zamba2Model.get_layers puts in `_tied_weights_keys` start at "layers.", the names of a
          Zamba2ForCausalLM at "model.layers."; ZambaModel lists the canonical layer among the duplicates.
Upstream: none known; 5.0.0 replaced the mechanism.
Remove:   when 4.57 leaves the supported range.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def duplicates(config: Any, block: str) -> list[str]:
    """Patterns for every name of a shared tensor but the canonical one.

    A model that holds this one puts its name and a dot in front of each pattern: they begin where a name begins.
    """
    from zamba_compat.layout.sharing import SharingMap

    return [
        rf"(?<![^.])layers\.{p.layer}\.{block}\."
        for p in SharingMap.from_config(config).positions
        if p.layer != p.canonical_layer
    ]


def get_layers(original: Any) -> Any:
    def get_layers(self: Any, *modules: Any) -> Any:
        layers = original(self, *modules)
        self._tied_weights_keys = duplicates(self.config, "shared_transformer")
        return layers

    return get_layers


def zamba_init(original: Any) -> Any:
    def __init__(self: Any, config: Any) -> None:
        original(self, config)
        self._tied_weights_keys = duplicates(config, "shared_transf")

    return __init__


ADAPTERS = (
    Adapter(
        name="zamba2-tied-keys",
        library="transformers",
        since="4.49",
        fixed="5",
        group="saving",
        target="transformers.models.zamba2.modeling_zamba2:Zamba2Model.get_layers",
        replace=get_layers,
        signature=("self", "blocks", "linear_layers", "mamba_layers"),
        upstream="none known",
        ends="replaced the mechanism",
    ),
    Adapter(
        name="zamba-tied-keys",
        library="transformers",
        since="4.49",
        fixed="5",
        group="saving",
        target="transformers.models.zamba.modeling_zamba:ZambaModel.__init__",
        replace=zamba_init,
        signature=("self", "config"),
        upstream="none known",
        ends="replaced the mechanism",
    ),
)
