"""The layout of Zyphra's fork of transformers, Zyphra/transformers_zamba2.

| stored (model. in front)                              | hub (model.layers. in front)                                |
|---|---|
| mamba_layers.N.{mamba,input_layernorm}                | N.{...} or, at a hybrid layer, N.mamba_decoder.{...}        |
| linear_layers.P                                       | L.linear, L the hybrid layer at position P                  |
| blocks.B.self_attn.{q,k,v,o}_proj, the two layernorms | C.shared_transformer.{...}, C the canonical layer of B      |
| blocks.B.feed_forward.linear_fc1, linear_fc2          | C.shared_transformer.feed_forward.{gate_up_proj, down_proj} |
| ....linear_fc1_lora_{A,B}_list.P                      | ....gate_up_proj_adapter_list.P.{0,1}                       |
| ....linear_{q,k,v}_lora_{A,B}_list.P                  | ....linear_{q,k,v}_adapter_list.P.{0,1}                     |

model.embed_tokens, model.final_layernorm and lm_head are named alike. Every tensor has the same shape in both; the
first half of linear_fc1 is the gate, as in gate_up_proj. Every block holds the adapters of all positions.

Source: modeling_zamba2.py (Zamba2Model, Zamba2MLP, Zamba2Attention), mamba2_layer.py, configuration_zamba2.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from zamba_compat.layout.sharing import SharingMap

from .zyphra import Converted, Layout, zyphra_words

if TYPE_CHECKING:
    from zamba_compat.checkpoint.reading.opening import TensorInfo

_NAMES = ("model.mamba_layers.", "model.linear_layers.", "model.blocks.")
_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(?:mamba_decoder\.)?(.+)")
_ADAPTER = re.compile(r"(?:gate_up_proj|(linear_[qkv]))_adapter_list\.([0-9]+)\.([01])\.weight")


def recognise(names: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether these are names of the fork's layout."""
    return any(name.startswith(_NAMES) for name in names)


def to_hub(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    *,
    where: str,
    keep_unused: bool = False,
    allow_unknown: bool = False,
) -> Converted:
    """From the fork's layout to the hub's.

    Args:
        tensors: stored name -> dtype and shape. `in_proj.0`, as the fork spelled it before October 2024, will do.
        config: config.json in any dialect. What is missing gets the default of Zyphra's code; the shapes must agree.
        where: what to call the checkpoint in errors.
        keep_unused: give the adapters no position uses too, under `is_misplaced` names after all others.
        allow_unknown: copy tensors that the layout does not have, instead of refusing them.

    Returns:
        the config in the classic dialect, and hub key -> Recipe in depth order.

    Raises:
        CheckpointError: names the tensors that are missing, of another shape than the config says, or unknown.
        ConfigError: no config of a Zamba2, or of one that has no form in the hub layout.
    """
    return _FORK.to_hub(tensors, config, where, keep_unused, allow_unknown)


def from_hub(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], *, where: str, allow_unknown: bool = False
) -> Converted:
    """From the hub layout, each block once at its canonical layer, to the fork's.

    An adapter that no position uses is taken from its `is_misplaced` name where there is one, else it is zeros.

    Args: as `to_hub`, which this undoes.

    Returns:
        the config in the fork's words, and stored name -> Recipe in depth order.

    Raises:
        CheckpointError: names the tensors that are missing, of another shape than the config says, or unknown.
        ConfigError: no config of a Zamba2, or of one that the fork's code cannot run.
    """
    return _FORK.from_hub(tensors, config, where, allow_unknown)


def stored_name(key: str, sharing: SharingMap) -> str:
    """The fork's name of a hub key."""
    shared = sharing.parse(key)
    if shared is not None:
        block, suffix = sharing.block_of(shared.layer), _ADAPTER.sub(_lora, shared.suffix)
        suffix = suffix.replace("gate_up_proj", "linear_fc1").replace("down_proj", "linear_fc2")
        return f"model.blocks.{block}.{suffix}"
    match = _LAYER.fullmatch(key)
    if match is None:
        return key
    if match[2].startswith("linear."):
        return f"model.linear_layers.{sharing.position_of(int(match[1])).index}.{match[2].removeprefix('linear.')}"
    return f"model.mamba_layers.{match[1]}.{match[2]}"


def _lora(match: re.Match[str]) -> str:
    return f"{match[1] or 'linear_fc1'}_lora_{'AB'[int(match[3])]}_list.{match[2]}.weight"


_FORK = Layout(
    name="zyphra-fork",
    stored_name=stored_name,
    config_words=zyphra_words,
    check_config=lambda config, where: None,
    ignored=re.compile(r"\.rotary_emb\.inv_freq\Z"),
    older_name=lambda name: name.replace(".mamba.in_proj.", ".mamba.in_proj.0."),
    holds_tied_head=True,
)
