"""The layout of Zyphra's standalone repository, Zyphra/Zamba2: one pickled state dict, such as a .pt file.

| stored (decoder. in front, but for the embedding) | Zyphra's fork (model. in front)                         |
|---|---|
| embedding                                         | embed_tokens, which is the head too                     |
| layers.N.mixer, layers.N.norm                     | mamba_layers.N.mamba, mamba_layers.N.input_layernorm    |
| layers.N.mixer.in_proj.0                          | mamba_layers.N.mamba.in_proj                            |
| block_map.L                                       | linear_layers.P, L the hybrid layer at position P       |
| blocks.B.sa.norm, blocks.B.mlp.norm               | blocks.B.input_layernorm, blocks.B.pre_ff_layernorm     |
| blocks.B.mlp.mixer                                | blocks.B.feed_forward                                   |
| blocks.B.sa.mixer.linear_proj                     | blocks.B.self_attn.o_proj                               |
| blocks.B.sa.mixer.linear_{q,k,v}_lora_{A,B}_list  | blocks.B.self_attn.linear_{q,k,v}_lora_{A,B}_list       |
| blocks.B.sa.mixer.linear_qkv                      | blocks.B.self_attn.{q,k,v}_proj, head by head           |

linear_qkv has, for each head, the head's rows of q, then of k, then of v: [heads, 3, head_dim, 2 * hidden_size].
The rows of the adapters are in the order of q, k and v alone.

Its config is config.json beside the weights. `MambaModel.from_pretrained` reads the fork's words from it and fills a
`MambaConfig`, whose fields the repository's own config.json uses (num_layers, layer_mapping, ...). What is written here
has both. No field sets the rotary base: it is 10000.

Source: mamba_model.py (`from_pretrained` holds the fork -> native renaming), mamba_block.py, attention.py, rotary.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from zamba_compat.layout.sharing import SharingMap

from . import zyphra_fork
from .zyphra import Config, Converted, Layout, refuse_config, zyphra_words

if TYPE_CHECKING:
    from torch import Tensor

    from zamba_compat.checkpoint.reading.opening import TensorInfo

_NAMES = ("decoder.layers.", "decoder.block_map.", "decoder.blocks.")
_LINEAR = re.compile(r"model\.layers\.([0-9]+)\.linear\.(.+)")
_RENAMED = (
    ("model.embed_tokens.", "embedding."),
    ("model.mamba_layers.", "decoder.layers."),
    ("model.", "decoder."),
    (".mamba.in_proj.", ".mixer.in_proj.0."),
    (".mamba.", ".mixer."),
    (".feed_forward.", ".mlp.mixer."),
    (".self_attn.o_proj.", ".sa.mixer.linear_proj."),
    (".self_attn.linear_", ".sa.mixer.linear_"),
    (".pre_ff_layernorm.", ".mlp.norm."),
)
_QKV = re.compile(r"\.self_attn\.[qkv]_proj\.")
_THETA = 10000


def recognise(names: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether these are names of the standalone repository's layout."""
    return any(name.startswith(_NAMES) for name in names)


def to_hub(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    *,
    where: str,
    keep_unused: bool = False,
    allow_unknown: bool = False,
) -> Converted:
    """From the standalone layout to the hub's: as `zyphra_fork.to_hub`, with linear_qkv taken apart.

    Buffers that the repository's own code ignores on loading (inv_freq, _extra_state) are dropped.
    """
    return _NATIVE.to_hub(tensors, config, where, keep_unused, allow_unknown)


def from_hub(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], *, where: str, allow_unknown: bool = False
) -> Converted:
    """From the hub layout to the standalone one: as `zyphra_fork.from_hub`, with q, k and v put together.

    A stored copy of the tied lm_head.weight is dropped: the embedding is the head.
    """
    return _NATIVE.from_hub(tensors, config, where, allow_unknown)


def stored_name(key: str, sharing: SharingMap) -> str:
    """The name of the stored tensor that holds a hub key; that of q, k and v is one and the same."""
    linear = _LINEAR.fullmatch(key)
    if linear is not None:
        return f"decoder.block_map.{linear[1]}.{linear[2]}"
    name = zyphra_fork.stored_name(key, sharing)
    norm = ".sa.norm." if name.startswith("model.blocks.") else ".norm."
    name = _QKV.sub(".sa.mixer.linear_qkv.", name).replace(".input_layernorm.", norm)
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name


def interleave(q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> Tensor:
    """linear_qkv from three weights [heads * head_dim, columns]; the result is [heads * 3 * head_dim, columns]."""
    import torch

    columns = q.shape[1]
    return torch.stack([weight.reshape(heads, -1, columns) for weight in (q, k, v)], 1).reshape(-1, columns)


def deinterleave(qkv: Tensor, *, part: int, heads: int) -> Tensor:
    """q (part 0), k (1) or v (2) of linear_qkv, in memory of its own."""
    columns = qkv.shape[1]
    return qkv.reshape(heads, 3, -1, columns)[:, part].reshape(-1, columns).contiguous()


def _config_words(config: Config) -> Config:
    words = zyphra_words(config)
    return words | {
        "num_layers": words["num_hidden_layers"],
        "layer_mapping": words["layers_block_type"],
        "num_mem_heads": words["num_attention_heads"],
        "padded_vocab_size": words["vocab_size"],
        "layernorm_epsilon": words.get("rms_norm_eps", 1e-5),
        "rms_norm": True,
        "use_mem_mlp": True,
    }


def _check_config(config: Config, where: str) -> None:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    theta = config.get("rope_theta", _THETA)
    if kv_heads != heads:
        refuse_config(f"num_key_value_heads is {kv_heads}, num_attention_heads {heads}.", where, "zyphra-native")
    if config["hidden_size"] % heads:
        what = f"num_attention_heads is {heads}, which does not divide hidden_size ({config['hidden_size']})."
        refuse_config(what, where, "zyphra-native")
    if config.get("tie_word_embeddings") is False:
        refuse_config("tie_word_embeddings is false.", where, "zyphra-native")
    if config.get("add_bias_linear"):
        refuse_config("add_bias_linear is true: other modules have a bias there.", where, "zyphra-native")
    if config["use_mem_rope"] and (theta != _THETA or config.get("use_long_context")):
        what = (
            f"rope_theta is {theta}, use_long_context {bool(config.get('use_long_context'))}; it rotates by {_THETA}."
        )
        refuse_config(what, where, "zyphra-native")


_NATIVE = Layout(
    name="zyphra-native",
    stored_name=stored_name,
    config_words=_config_words,
    check_config=_check_config,
    ignored=re.compile(r"(?:\A|\.)(?:rotary_pos_emb\.inv_freq|_extra_state)\Z"),
    older_name=lambda name: name,
    join=interleave,
    split=deinterleave,
)
