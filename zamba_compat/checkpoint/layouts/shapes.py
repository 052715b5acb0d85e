"""The shape of every tensor of a Zamba or Zamba2 model, from its config alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zamba_compat.errors import ConfigError
from zamba_compat.layout.sharing import SharingMap

Shape = tuple[int, ...]

# What every release assumes for a key that is missing. Each of these shows in the shape of some tensor.
DEFAULTS: dict[str, dict[str, int]] = {
    "zamba2": {
        "vocab_size": 32000,
        "hidden_size": 2560,
        "mamba_d_state": 64,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "adapter_rank": 128,
    },
    "zamba": {
        "vocab_size": 32000,
        "hidden_size": 3712,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "n_mamba_heads": 2,
    },
}
# No shape tells these, and models differ in them.
UNPROVABLE = {"zamba2": ("num_attention_heads", "use_mem_rope"), "zamba": ("num_attention_heads",)}
_HEADS = {"lm_head.weight": "vocab_size", "score.weight": "num_labels"}


def fill_in(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config with the defaults of missing keys that shapes can prove, and the names of those keys.

    Args:
        config: in the classic dialect.
        where: what to call it in errors.

    Raises:
        ConfigError: a key is missing that no shape tells, or a size is not a positive integer.
    """
    kind = config["model_type"]
    absent = [key for key in UNPROVABLE[kind] if config.get(key) is None]
    if absent:
        raise ConfigError(
            f"{' and '.join(absent)} missing, and no tensor's shape tells what was meant.",
            where=where,
            remedy="Add what the model was trained with.",
        )
    assumed = {key: value for key, value in DEFAULTS[kind].items() if config.get(key) is None}
    out = {**config, **assumed}
    if out.get("intermediate_size") is None:
        assumed["intermediate_size"] = out["intermediate_size"] = 4 * out["hidden_size"]
    if out.get("num_key_value_heads") is None:
        assumed["num_key_value_heads"] = out["num_key_value_heads"] = out["num_attention_heads"]
    if kind == "zamba" and out.get("mamba_dt_rank", "auto") == "auto":
        out["mamba_dt_rank"] = math.ceil(out["hidden_size"] / 16)
    sizes = [*DEFAULTS[kind], "intermediate_size", "num_key_value_heads", "num_attention_heads"]
    for key in [*sizes, *(["mamba_dt_rank"] if kind == "zamba" else [])]:
        value = out[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} is {value!r}, not a positive integer.", where=where, remedy="Correct the config.")
    if out["hidden_size"] * out["mamba_expand"] % out["n_mamba_heads"]:
        raise ConfigError(
            f"n_mamba_heads is {out['n_mamba_heads']}, which does not divide the "
            f"{out['hidden_size'] * out['mamba_expand']} inner channels.",
            where=where,
            remedy="Correct the config.",
        )
    return out, tuple(assumed)


def expected_shapes(config: Mapping[str, Any], sharing: SharingMap, *, prefix: str = "model.") -> dict[str, Shape]:
    """The tensors of the hub layout and their shapes, in depth order.

    Args:
        config: in the classic dialect, as `fill_in` returns it.
        sharing: its sharing map.
        prefix: "model." for a language model, "" for a base model.
    """
    modules = _modules(config)
    stem = f".{sharing.stem}."
    shapes: dict[str, Shape] = {}
    for key in sharing.hub_keys(prefix=prefix):
        shared = sharing.parse(key)
        if shared is not None:
            shapes[key] = _block_shape(shared.suffix, shared.adapter, modules, config)
        else:
            assert stem not in key
            shapes[key] = _own_shape(key, modules, config)
    return shapes


def head_shape(name: str, config: Mapping[str, Any]) -> Shape | None:
    """The shape of a head's weight; None if `name` is no head or the config does not say."""
    rows = config.get(_HEADS.get(name, ""))
    if rows is None and name == "score.weight" and isinstance(config.get("id2label"), Mapping):
        rows = len(config["id2label"])
    return (rows, config["hidden_size"]) if isinstance(rows, int) else None


def is_head(name: str) -> bool:
    """Whether a language model or a classifier has a weight of this name on top."""
    return name in _HEADS


def _modules(config: Mapping[str, Any]) -> dict[str, Shape]:
    """The weights of linear and convolution modules, by their last name."""
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    inner, heads = config["mamba_expand"] * hidden, config["n_mamba_heads"]
    query_heads, wide = config["num_attention_heads"], 2 * hidden
    head_dim = wide // query_heads
    key_rows = config["num_key_value_heads"] * head_dim
    modules: dict[str, Shape] = {
        "q_proj": (query_heads * head_dim, wide),
        "k_proj": (key_rows, wide),
        "v_proj": (key_rows, wide),
        "o_proj": (hidden, query_heads * head_dim),
        "gate_up_proj": (2 * inter, hidden),
        "gate_proj": (inter, hidden),
        "up_proj": (inter, hidden),
        "down_proj": (hidden, inter),
        "out_proj": (hidden, inner),
        "linear": (hidden, hidden),
        "embed_tokens": (config["vocab_size"], hidden),
        "lm_head": (config["vocab_size"], hidden),
    }
    if config["model_type"] == "zamba2":
        channels = inner + 2 * config["mamba_ngroups"] * config["mamba_d_state"]
        modules["in_proj"] = (inner + channels + heads, hidden)
    else:
        channels = inner
        modules["in_proj"] = (2 * inner, hidden)
    modules["conv1d"] = (channels, 1, config["mamba_d_conv"])
    return modules


def _block_shape(suffix: str, adapter: int | None, modules: Mapping[str, Shape], config: Mapping[str, Any]) -> Shape:
    wide, rank = 2 * config["hidden_size"], config.get("adapter_rank", 0)
    module, _, parameter = suffix.rpartition(".")
    if adapter is not None:
        module, _, half = module.rpartition(".")
        rows, columns = modules["gate_up_proj"] if "gate_up_proj" in module else (wide, wide)
        return (rank, columns) if half == "0" else (rows, rank)
    if suffix == "input_layernorm.weight":
        return (wide,)
    if suffix == "pre_ff_layernorm.weight":
        return (config["hidden_size"],)
    weight = modules[module.rpartition(".")[2]]
    return weight if parameter == "weight" else weight[:1]


def _own_shape(key: str, modules: Mapping[str, Shape], config: Mapping[str, Any]) -> Shape:
    hidden, heads = config["hidden_size"], config["n_mamba_heads"]
    inner = config["mamba_expand"] * hidden
    module, _, parameter = key.rpartition(".")
    name = module.rpartition(".")[2]
    if name in modules:
        return modules[name] if parameter == "weight" else modules[name][:1]
    if parameter == "weight":  # norms
        return (inner,) if name == "norm" else (hidden,)
    if config["model_type"] == "zamba2":
        return (heads,)
    head_dim, d_state, rank = inner // heads, config["mamba_d_state"], config["mamba_dt_rank"]
    return {
        "x_proj_weight": (heads, rank + 2 * d_state, head_dim),
        "dt_proj_weight": (heads, head_dim, rank),
        "dt_proj_bias": (heads, head_dim),
        "A_log": (heads, head_dim, d_state),
        "D": (heads, head_dim),
    }[parameter]
