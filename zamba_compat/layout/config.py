"""Read a Zamba or Zamba2 config in whichever dialect it was written, and write one that every release reads.

| dialect | written by | layer types | telling keys |
|---|---|---|---|
| classic | transformers before 5.13 | "mamba" / "hybrid" | mamba_d_state; rope_parameters from 5.0 on |
| current | transformers 5.13 and later | "linear_attention" / "hybrid" | mamba_d_state, rope_parameters |
| zyphra-fork | Zyphra/transformers_zamba2 | "m" / "g" | state_size, conv_dimension, lora_rank |
| zyphra-native | Zyphra/Zamba2 | "m" / "g" | num_layers, layer_mapping, num_mem_heads |

Every release reads classic; releases before 5.13 read nothing else.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from zamba_compat.errors import ConfigError

Dialect = Literal["classic", "current", "zyphra-fork", "zyphra-native"]

MODEL_TYPES = ("zamba2", "zamba")
# The name of a Mamba layer in releases before 5.13 by that in later ones, and the other way round.
OLDER_TYPES, NEWER_TYPES = {"linear_attention": "mamba"}, {"mamba": "linear_attention"}
_MAMBA, _HYBRID = (*NEWER_TYPES, *OLDER_TYPES, "m"), ("hybrid", "g")
_LAYER_LISTS = ("layers_block_type", "layer_types", "layer_mapping")
_NATIVE_NAMES = {
    "num_layers": "num_hidden_layers",
    "layer_mapping": "layers_block_type",
    "num_mem_heads": "num_attention_heads",
    "padded_vocab_size": "vocab_size",
    "layernorm_epsilon": "rms_norm_eps",
}
_FORK_NAMES = {
    "state_size": "mamba_d_state",
    "conv_dimension": "mamba_d_conv",
    "expansion_factor": "mamba_expand",
    "ffn_hidden_size": "intermediate_size",
    "lora_rank": "adapter_rank",
    "use_shared_attention_lora": "use_shared_attention_adapter",
}
_CLASSIC_NAMES = {"layer_types": "layers_block_type", **_FORK_NAMES, **_NATIVE_NAMES}
# Switches of Zyphra's own code that transformers has fixed: with another value its Zamba2 is another model.
_ALWAYS_ON, _ALWAYS_OFF = ("use_shared_block_lora", "use_mem_mlp", "rms_norm"), ("use_low_rank_mamba_proj",)
_FLAGS = {
    "zamba2": ("use_shared_attention_adapter", "add_bias_linear", "tie_word_embeddings"),
    "zamba": ("mamba_conv_bias", "mamba_proj_bias", "tie_word_embeddings"),
}
# What the releases assume when layers_block_type is absent: (number of layers, its hybrid layers).
_DEFAULT_ZAMBA2 = (54, (6, 12, 18, 24, 30, 36, 42, 47, 51))
_DEFAULT_ZAMBA_LAYERS = 76
_MOST = 10_000  # more layers than any model has; a larger number is a damaged config


def read_config(source: object) -> dict[str, Any]:
    """The config as it was written, as a dict of its own.

    Args:
        source: a mapping, the path of a config.json or of its directory, or a transformers config.

    Raises:
        ConfigError: no such file, or one that is empty, not UTF-8, not a JSON object, or names a key twice.
    """
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(_config_file(source))
    to_dict = getattr(source, "to_dict", None)
    if isinstance(source, type) or not callable(to_dict):
        remedy = "Give a dict, the path of config.json or of its directory, or a transformers config."
        _refuse(f"Cannot read a config from an object of type {type(source).__name__}.", None, remedy)
    return dict(to_dict())


def dialect_of(config: Mapping[str, Any]) -> Dialect:
    """The dialect a config was written in, told by its keys and its names of the layer types."""
    lists = [config[key] for key in _LAYER_LISTS if isinstance(config.get(key), (list, tuple))]
    names = [name for types in lists for name in types]
    if "layer_mapping" in config or "num_layers" in config:
        return "zyphra-native"
    if "m" in names or "g" in names or not {*_FORK_NAMES, "use_shared_block_lora"}.isdisjoint(config):
        return "zyphra-fork"
    return "current" if "linear_attention" in names else "classic"


def normalise_config(config: object) -> dict[str, Any]:
    """Anything `read_config` takes, in the classic dialect: "mamba", "hybrid", rope_theta, torch_dtype.

    layers_block_type and (Zamba2) hybrid_layer_ids are filled in where the rest decides them; unknown keys
    are kept. A theta in rope_parameters wins over a bare one: releases that write the first never write the
    second, while 4.x carries the first along unread beside a default of its own. torch_dtype wins over dtype:
    only releases that carry dtype along unread write both. Normalising twice equals normalising once.

    Raises:
        ConfigError: another architecture, a needed key that is missing, or keys that contradict each other.
    """
    raw = read_config(config)
    where = str(_config_file(config)) if isinstance(config, (str, os.PathLike)) else "config"
    out = {key: value for key, value in raw.items() if value is not None or key != "rope_theta"}
    out["model_type"] = model_type = _model_type(raw, where)
    for key in _LAYER_LISTS:
        if out.get(key) is not None:
            out[key] = _layer_types(out[key], key, where)
    if model_type == "zamba2":
        _rename(out, _CLASSIC_NAMES, where)
        _settle_zyphra(out, dialect_of(raw), where)
    else:
        _rename(out, {"layer_types": "layers_block_type"}, where)
    _settle_rope(out)
    dtype = out.pop("dtype", None)
    if out.get("torch_dtype") is None and dtype is not None:
        out["torch_dtype"] = dtype
    for flag in _FLAGS[model_type]:
        if not isinstance(out.get(flag), (bool, type(None))):
            _refuse(f"{flag} is {out[flag]!r}, neither true nor false.", where)
    _settle_layers(out, where)
    return out


def to_release_config(config: object, dialect: Literal["classic", "current"] = "classic") -> dict[str, Any]:
    """A config to write to config.json, in the dialect asked for; unknown keys are kept.

    Every release with Zamba2 reads "classic"; "current" is what 5.13 and later write themselves. Of Zamba v1,
    releases 5.13 and 5.14 refuse the word "mamba", so "classic" leaves its layers_block_type out where
    attn_layer_period and attn_layer_offset say the same.

    Raises:
        ConfigError: as `normalise_config`, or a dialect that is neither.
    """
    out = normalise_config(config)
    if dialect == "classic":
        period, offset = out.get("attn_layer_period", 6), out.get("attn_layer_offset", 4)
        implied = _zamba_types(out["num_hidden_layers"], period, offset)
        if out["model_type"] == "zamba" and out["layers_block_type"] == implied:
            del out["layers_block_type"]
        return out
    if dialect != "current":
        _refuse(f"{dialect!r} is no dialect to write.", None, 'Use "classic" or "current".')
    out["layers_block_type"] = [NEWER_TYPES.get(name, name) for name in out["layers_block_type"]]
    if "rope_theta" in out:
        scaling = out.pop("rope_scaling", None)
        rope = dict(scaling) if isinstance(scaling, Mapping) else {}
        rope.setdefault("rope_type", rope.pop("type", "default"))
        out["rope_parameters"] = {**rope, "rope_theta": out.pop("rope_theta")}
    if "torch_dtype" in out:
        out["dtype"] = out.pop("torch_dtype")
    return out


def _config_file(source: str | os.PathLike[str]) -> Path:
    path = Path(os.fsdecode(source))
    return path / "config.json" if path.is_dir() else path


def _read_file(path: Path) -> dict[str, Any]:
    where = str(path)
    if not path.is_file():
        _refuse("There is no config file here.", where, "Give a local checkpoint directory.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            _refuse(f"Written more than once: {', '.join(twice)}.", where, "Keep the one that is right.")
        return content

    remedy = "Restore config.json from the checkpoint's source."
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text, object_pairs_hook=unique) if text.strip() else None
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"The config is not readable JSON: {error}.", where=where, remedy=remedy) from error
    if content is None:
        _refuse("The config file is empty.", where, remedy)
    if not isinstance(content, dict):
        _refuse(f"The config is a JSON {type(content).__name__}, not an object.", where, remedy)
    return content


def _refuse(what: str, where: str | None, remedy: str = "Correct the config.") -> NoReturn:
    raise ConfigError(what, where=where, remedy=remedy)


def _model_type(config: Mapping[str, Any], where: str) -> str:
    found = config.get("model_type")
    if found is None and dialect_of(config).startswith("zyphra"):
        found = "zamba2"
    if found is None:
        _refuse("model_type is missing.", where, 'Add "model_type": "zamba2" if this is a Zamba2 config.')
    if found not in MODEL_TYPES:
        _refuse(f"This config describes the architecture {found!r}.", where, "Only zamba2 and zamba are handled here.")
    return str(found)


def _layer_types(value: object, key: str, where: str) -> list[str]:
    if not isinstance(value, (list, tuple)):
        _refuse(f"{key} is {value!r}, not a list of layer types.", where)
    for layer, name in enumerate(value):
        if name not in _MAMBA + _HYBRID:
            _refuse(f"{key} calls layer {layer} {name!r}.", where, f"Known layer types: {', '.join(_MAMBA + _HYBRID)}.")
    return ["hybrid" if name in _HYBRID else "mamba" for name in value]


def _rename(config: dict[str, Any], names: Mapping[str, str], where: str) -> None:
    for old, new in names.items():
        value = config.pop(old, None)
        if value is None:
            continue
        if config.get(new) is not None and config[new] != value:
            _refuse(f"{old} is {value!r}, {new} is {config[new]!r}.", where, "Keep the one that is right.")
        config[new] = value


def _settle_zyphra(config: dict[str, Any], dialect: Dialect, where: str) -> None:
    zyphra = dialect.startswith("zyphra")
    if zyphra:
        for key in _ALWAYS_ON + _ALWAYS_OFF:
            value = config.pop(key, None)
            if value is not None and value != (key in _ALWAYS_ON):
                _refuse(f"{key} is {value!r}.", where, "The Zamba2 of transformers has no such variant.")
        config.pop("gated_linear_unit", None)
    head_dim = config.get("mamba_headdim") or (64 if zyphra else None)
    sizes = config.get("hidden_size"), config.get("mamba_expand", 2), head_dim
    if config.get("n_mamba_heads") is None and all(isinstance(size, int) and size > 0 for size in sizes):
        inner = sizes[0] * sizes[1]
        if inner % head_dim:
            _refuse(f"mamba_headdim is {head_dim}, which does not divide the {inner} inner channels.", where)
        config["n_mamba_heads"] = inner // head_dim


def _settle_rope(config: dict[str, Any]) -> None:
    rope = config.pop("rope_parameters", None)
    if not isinstance(rope, Mapping):
        return
    scaling = dict(rope)
    theta = scaling.pop("rope_theta", None)
    if theta is not None:
        config["rope_theta"] = theta
    if scaling.get("rope_type", "default") != "default" or set(scaling) - {"rope_type"}:
        config["rope_scaling"] = scaling


def _settle_layers(config: dict[str, Any], where: str) -> None:
    num_layers = _integer(config, "num_hidden_layers", where)
    types = config.get("layers_block_type")
    written = config.get("hybrid_layer_ids")
    if types is None:
        types = config["layers_block_type"] = _implied_types(config, num_layers, where)
    if len(types) != num_layers:
        _refuse(f"layers_block_type has {len(types)} entries, num_hidden_layers is {num_layers}.", where)
    hybrid = [layer for layer, name in enumerate(types) if name == "hybrid"]
    if not hybrid:
        _refuse("No layer is hybrid, so no shared block is used.", where)
    if written is not None and written not in (hybrid, tuple(hybrid)):
        what = f"hybrid_layer_ids is {written!r}, the hybrid layers of layers_block_type are {hybrid}."
        _refuse(what, where, "Keep the one the checkpoint was trained with.")
    if config["model_type"] == "zamba2":
        config["hybrid_layer_ids"] = hybrid
        blocks = _integer(config, "num_mem_blocks", where)
        if blocks > len(hybrid):
            _refuse(f"num_mem_blocks is {blocks}, more than the {len(hybrid)} hybrid layers.", where)


def _integer(config: Mapping[str, Any], key: str, where: str, least: int = 1) -> int:
    value = config.get(key)
    if value is None:
        _refuse(f"{key} is missing.", where, f"Add {key}: which tensors are shared depends on it.")
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
        _refuse(f"{key} is {value!r}, not an integer from {least} to {_MOST}.", where)
    return value


def _implied_types(config: Mapping[str, Any], num_layers: int, where: str) -> list[str]:
    ids = config.get("hybrid_layer_ids")
    if ids is None and config["model_type"] == "zamba":
        if num_layers == _DEFAULT_ZAMBA_LAYERS:
            config = {"attn_layer_period": 6, "attn_layer_offset": 4, **config}
        offset = _integer(config, "attn_layer_offset", where, least=0)
        return _zamba_types(num_layers, _integer(config, "attn_layer_period", where), offset)
    if ids is None and num_layers == _DEFAULT_ZAMBA2[0]:
        ids = _DEFAULT_ZAMBA2[1]
    if not isinstance(ids, (list, tuple)):
        remedy = 'List "mamba" or "hybrid" for every layer; only 54 layers have a default pattern.'
        _refuse("layers_block_type is missing.", where, remedy)
    return ["hybrid" if layer in ids else "mamba" for layer in range(num_layers)]


def _zamba_types(num_layers: int, period: Any, offset: Any) -> list[str]:
    """Zamba v1: layer 2 is hybrid, and from layer 3 on every period-th one, counted from the offset."""
    if not isinstance(period, int) or period < 1:
        return []
    tail = ["hybrid" if layer % period == offset else "mamba" for layer in range(num_layers - 3)]
    return ["mamba", "mamba", "hybrid", *tail]
