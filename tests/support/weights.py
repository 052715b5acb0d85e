"""Small Zamba2 and Zamba (v1) models: configs and random weights.

The weights are drawn so that mistakes show in the logits and rounding does not. Mamba states last for
hundreds of tokens, the smallest time steps lie below time_step_min, blocks and adapters differ strongly,
attention is sharp enough for the rotary embedding to matter, and the final norm has random signs so that
greedy decoding does not just repeat the last token. test_reference.py measures all that.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from support.reference import hybrid_layers, layer_kinds

Config = dict[str, Any]
State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

_ATTENTION_ADAPTERS: Config = {"use_mem_rope": True, "use_shared_attention_adapter": True}
_1B: Config = {"num_mem_blocks": 1, "mamba_d_state": 12, **_ATTENTION_ADAPTERS}
_3B: Config = {"num_mem_blocks": 2}
_7B: Config = {"num_mem_blocks": 2, "mamba_ngroups": 2, "use_mem_rope": True}

# Number of layers, hybrid layers, entries of config.json. The published ones are shortened but keep what
# trips implementations in 2.7B and 7B: layer % 2 is not position % 2, and block 0 has one use more.
_PATTERNS: dict[str, tuple[int, tuple[int, ...], Config]] = {
    "1.2B": (7, (1, 3, 5), _1B),
    "2.7B": (11, (2, 4, 6, 7, 9), _3B),
    "7B": (11, (2, 3, 5, 7, 9), _7B),
    "three-blocks": (9, (1, 2, 4, 5, 7, 8), {"num_mem_blocks": 3, "mamba_ngroups": 2, **_ATTENTION_ADAPTERS}),
    "hybrid-0": (7, (0, 2, 3, 5), {"num_mem_blocks": 2, "use_shared_attention_adapter": True}),
    "irregular": (9, (1, 2, 6, 8), {"num_mem_blocks": 2, "use_mem_rope": True}),
    "single-use": (6, (1, 3, 4), {"num_mem_blocks": 3, "mamba_ngroups": 2, **_ATTENTION_ADAPTERS}),
    "grouped-query": (7, (1, 3, 5), {"num_mem_blocks": 2, "use_mem_rope": True, "num_key_value_heads": 2}),
}
_FULL: dict[str, tuple[int, tuple[int, ...], Config]] = {
    "1.2B": (38, (5, 11, 17, 23, 29, 35), _1B),
    "2.7B": (54, (6, 12, 18, 24, 30, 36, 42, 47, 51), _3B),
    "7B": (81, (6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77), _7B),
}
PUBLISHED = tuple(_FULL)
UNPUBLISHED = tuple(name for name in _PATTERNS if name not in _FULL)
PATTERNS = PUBLISHED + UNPUBLISHED
ZAMBA1 = "zamba-v1"

_COMMON: Config = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_floor": 0.0001,
    "use_cache": True,
    "num_logits_to_keep": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "transformers_version": "4.49.0",
}
_ZAMBA2: Config = {
    "architectures": ["Zamba2ForCausalLM"],
    "model_type": "zamba2",
    "mamba_ngroups": 1,
    "n_mamba_heads": 8,
    "chunk_size": 16,
    "adapter_rank": 8,
    "add_bias_linear": False,
    "use_conv_bias": True,
    "use_mem_rope": False,
    "use_mem_eff_path": False,
    "use_long_context": False,
    "use_shared_attention_adapter": False,
    "rope_theta": 10000,
    "time_step_limit": None,
}
_ZAMBA1: Config = {
    "architectures": ["ZambaForCausalLM"],
    "model_type": "zamba",
    "num_hidden_layers": 8,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "n_mamba_heads": 2,
    "mamba_dt_rank": 4,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "use_mamba_kernels": False,
    "hidden_mamba_act": "silu",
    "tie_word_embeddings": True,
}


def make_config(pattern: str, *, full: bool = False, **overrides: Any) -> Config:
    """The config.json that release 4.49.0 would write for one of PATTERNS, or for ZAMBA1.

    full: the exact layers of the published model (PUBLISHED only); the width stays small.
    overrides: entries to replace; entries that follow from others are computed after them.
    """
    if pattern == ZAMBA1:
        config = _COMMON | _ZAMBA1 | overrides
        config.setdefault("layers_block_type", layer_kinds(config))
    else:
        layers, hybrid, settings = (_FULL if full else _PATTERNS)[pattern]
        kinds = ["hybrid" if layer in hybrid else "mamba" for layer in range(layers)]
        config = _COMMON | _ZAMBA2 | settings | {"layers_block_type": kinds} | overrides
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    derived = {
        "num_hidden_layers": len(config["layers_block_type"]),
        "num_key_value_heads": heads,
        "intermediate_size": 2 * hidden,
        "attention_hidden_size": 2 * hidden,
        "attention_head_dim": 2 * hidden // heads,
    }
    if pattern != ZAMBA1:
        derived |= {
            "hybrid_layer_ids": hybrid_layers(config),
            "mamba_headdim": config["mamba_expand"] * hidden // config["n_mamba_heads"],
            "kv_channels": hidden // heads,
            "num_query_groups": heads,
        }
    return copy.deepcopy(derived | config)


def _mixer_shapes(config: Config) -> Shapes:
    heads, d_state = config["n_mamba_heads"], config["mamba_d_state"]
    hidden, inner = config["hidden_size"], config["mamba_expand"] * config["hidden_size"]
    if config["model_type"] == "zamba":
        head_dim, rank = inner // heads, config["mamba_dt_rank"]
        rows, channels = 2 * inner, inner
        own: Shapes = {
            "x_proj_weight": (heads, rank + 2 * d_state, head_dim),
            "dt_proj_weight": (heads, head_dim, rank),
            "dt_proj_bias": (heads, head_dim),
            "A_log": (heads, head_dim, d_state),
            "D": (heads, head_dim),
        }
    else:
        channels = inner + 2 * config["mamba_ngroups"] * d_state
        rows = inner + channels + heads
        own = {"dt_bias": (heads,), "A_log": (heads,), "D": (heads,), "norm.weight": (inner,)}
    return own | {
        "in_proj.weight": (rows, hidden),
        "conv1d.weight": (channels, 1, config["mamba_d_conv"]),
        "conv1d.bias": (channels,),
        "out_proj.weight": (hidden, inner),
    }


def _block_shapes(config: Config, positions: Iterable[int]) -> Shapes:
    hidden, inter, wide = config["hidden_size"], config["intermediate_size"], 2 * config["hidden_size"]
    key_rows = wide * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: Shapes = {
        "self_attn.q_proj.weight": (wide, wide),
        "self_attn.k_proj.weight": (key_rows, wide),
        "self_attn.v_proj.weight": (key_rows, wide),
        "self_attn.o_proj.weight": (hidden, wide),
        "feed_forward.down_proj.weight": (hidden, inter),
        "input_layernorm.weight": (wide,),
        "pre_ff_layernorm.weight": (hidden,),
    }
    if config["model_type"] == "zamba":
        return shapes | {f"feed_forward.{name}_proj.weight": (inter, hidden) for name in ("gate", "up")}
    adapted = {"feed_forward.gate_up_proj": (2 * inter, hidden)}
    shapes["feed_forward.gate_up_proj.weight"] = adapted["feed_forward.gate_up_proj"]
    if config["use_shared_attention_adapter"]:
        adapted |= {f"self_attn.linear_{name}": (wide, wide) for name in "qkv"}
    rank = config["adapter_rank"]
    for name, (rows, columns) in adapted.items():
        for position in positions:
            shapes[f"{name}_adapter_list.{position}.0.weight"] = (rank, columns)
            shapes[f"{name}_adapter_list.{position}.1.weight"] = (rows, rank)
    return shapes


def block_uses(config: Config) -> list[list[int]]:
    """For every block its positions, in order: position p runs block p % num_mem_blocks."""
    blocks = config.get("num_mem_blocks", 1)
    return [list(range(block, len(hybrid_layers(config)), blocks)) for block in range(blocks)]


def _hub_shapes(config: Config) -> Shapes:
    hidden, hybrid = config["hidden_size"], hybrid_layers(config)
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    canonical = {hybrid[positions[0]]: positions for positions in block_uses(config) if positions}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        if layer in canonical:
            block = _block_shapes(config, canonical[layer])
            shapes |= {f"{prefix}{_block_name(config)}.{name}": shape for name, shape in block.items()}
        if layer in hybrid:
            shapes[f"{prefix}linear.weight"] = (hidden, hidden)
            prefix += "mamba_decoder."
        shapes |= {f"{prefix}mamba.{name}": shape for name, shape in _mixer_shapes(config).items()}
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
    return shapes | {"model.final_layernorm.weight": (hidden,)}


def _block_name(config: Config) -> str:
    return "shared_transf" if config["model_type"] == "zamba" else "shared_transformer"


# Of the standard deviation 1 / sqrt(columns); what is not listed has 1. Small enough to keep the model from
# amplifying rounding errors, large enough for every part to count.
_GAINS = {
    "out_proj": 0.15,
    "linear.weight": 0.5,
    "q_proj": 0.6,
    "k_proj": 0.6,
    "self_attn.linear": 0.6,
    "x_proj_weight": 2.0,
    "dt_proj_weight": 0.5,
}


def generator(*what: object) -> torch.Generator:
    """Random numbers that depend on what they are for, and on nothing else."""
    return torch.Generator().manual_seed(zlib.crc32(repr(what).encode()))


def _time_steps(mixer: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """dt for a zero input: from 0.0003 to 0.05, evenly in the logarithm, in an order drawn per mixer."""
    spread = torch.logspace(-3.5, -1.3, torch.Size(shape).numel(), dtype=torch.float64)
    return spread[torch.randperm(len(spread), generator=generator(seed, mixer))].reshape(shape)


def _draw(key: str, shape: tuple[int, ...], config: Config, seed: int) -> Tensor:
    """The values of one tensor, float64; the other tensors of the model make no difference."""
    draws = generator(seed, key)
    normal = torch.randn(shape, generator=draws, dtype=torch.float64)
    mixer, _, name = key.rpartition(".")
    if name in ("dt_bias", "dt_proj_bias"):
        return _time_steps(mixer, shape, seed).expm1().log()  # inverse of softplus
    if name == "A_log":
        steps = _time_steps(mixer, shape[:2], seed)
        decay_times = 40 * 50 ** torch.rand(shape, generator=draws, dtype=torch.float64)
        return -(decay_times * (steps if len(shape) == 1 else steps[..., None])).log()
    if name == "D":
        return 0.5 + 0.2 * normal
    if key.endswith("embed_tokens.weight"):
        return normal
    if key.endswith("conv1d.bias"):
        return 0.1 * normal
    if len(shape) == 1:  # norms
        scale = 1 + 0.2 * normal
        if key == "model.final_layernorm.weight":
            return 0.3 * scale * torch.randn(shape, generator=draws).sign()
        return scale
    values = normal * next((gain for part, gain in _GAINS.items() if part in key), 1.0) / shape[-1] ** 0.5
    if key.endswith("in_proj.weight") and config["model_type"] == "zamba2":
        inner, heads = config["mamba_expand"] * config["hidden_size"], config["n_mamba_heads"]
        values[2 * inner : -heads] *= 1.5  # B and C: the state against D
        values[-heads:] *= 0.5  # dt
    return values


def make_state(config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Random weights in the hub layout: every block at the first layer that uses it, and no lm_head."""
    return {key: _draw(key, shape, config, seed).to(dtype) for key, shape in _hub_shapes(config).items()}
