"""Number shared blocks by hybrid position, not by layer index.

Symptom:  ValueError in get_expanded_tied_weights_keys: "There is an issue with your definition of `tie_weights_keys`":
          every Zamba2 in 5.0.0, 2.7B and 7B from 5.1.0 on.
Cause:    5.0.0 ties every hybrid layer to layers.0, which is none. From 5.1.0 on, Zamba2Model.get_layers gives layer L
          the adapter slots of block L % num_mem_blocks; tied layers then hold different slots.
Upstream: huggingface/transformers#47994, fixed by #48325 in 5.17.0.
Remove:   when 5.16 leaves the supported range.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def get_layers(original: Any) -> Any:
    from torch import nn
    from transformers.models.zamba2 import modeling_zamba2 as zamba2

    from zamba_compat.layout.sharing import SharingMap

    def get_layers(self: Any, *_shared_modules: Any) -> Any:
        # 5.0.0 hands in one module object per block; a module of its own per layer, tied by name, is what every
        # later release does and what its loader expects.
        sharing = SharingMap.from_config(self.config)
        positions = {position.layer: position for position in sharing.positions}
        self.first_transformer_layer_id = 0
        self._tied_weights_keys = {
            f"layers.{p.layer}.shared_transformer": f"layers.{p.canonical_layer}.shared_transformer"
            for p in sharing.positions
            if p.layer != p.canonical_layer
        }
        layers = []
        for index in range(self.config.num_hidden_layers):
            mamba = zamba2.Zamba2MambaDecoderLayer(self.config, layer_idx=index)
            if index in positions:
                block = zamba2.Zamba2AttentionDecoderLayer(self.config, block_id=positions[index].block)
                linear = nn.Linear(self.config.hidden_size, self.config.hidden_size, bias=False)
                layers.append(zamba2.Zamba2HybridLayer(block, linear, mamba))
            else:
                layers.append(mamba)
        return nn.ModuleList(layers)

    return get_layers


ADAPTER = Adapter(
    name="zamba2-block-order",
    library="transformers",
    since="5.0",
    fixed="5.17",
    group="tying",
    target="transformers.models.zamba2.modeling_zamba2:Zamba2Model.get_layers",
    replace=get_layers,
    signature=("self", ...),
    upstream="huggingface/transformers#47994, #48325",
)
