"""Read configs that other releases wrote.

Symptom:  StopIteration while the model is built; a rope_theta or dtype that is not the checkpoint's. Zamba (v1) in 5.13
          and 5.14: StrictDataclassClassValidationError for the published configs.
Cause:    5.13 and later write a Mamba layer as "linear_attention" and the list as layer_types, which 5.5 and later
          read; 5.0 and later write rope_theta inside rope_parameters, 4.56 and later torch_dtype as dtype. Older
          releases know only the older words.
          5.13 and 5.14 translate the older words for Zamba2 and forget Zamba.
Upstream: none known.
Remove:   when 5.14 leaves the supported range.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def _layer_types(kwargs: dict[str, Any], *, newer: bool = False) -> None:
    from zamba_compat.layout.config import NEWER_TYPES, OLDER_TYPES

    words = NEWER_TYPES if newer else OLDER_TYPES
    types = kwargs.pop("layer_types", None) or kwargs.get("layers_block_type")
    if types is not None:
        kwargs["layers_block_type"] = [words.get(name, name) for name in types]


def _older_rope_and_dtype(kwargs: dict[str, Any]) -> None:
    rope = kwargs.pop("rope_parameters", None)
    if rope:
        kwargs.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default":
            kwargs.setdefault("rope_scaling", {k: v for k, v in rope.items() if k != "rope_theta"})
    dtype = kwargs.pop("dtype", None)
    if dtype is not None:
        kwargs.setdefault("torch_dtype", dtype)


def init_4x(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _layer_types(kwargs)
        _older_rope_and_dtype(kwargs)
        original(self, *args, **kwargs)

    return __init__


def init_5x(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _layer_types(kwargs)
        original(self, *args, **kwargs)

    return __init__


def init_newer_words(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _layer_types(kwargs, newer=True)
        original(self, *args, **kwargs)

    return __init__


ZAMBA = "transformers.models.zamba.configuration_zamba:ZambaConfig.__init__"
TARGET = "transformers.models.zamba2.configuration_zamba2:Zamba2Config.__init__"

ADAPTERS = (
    Adapter(
        name="zamba2-config-reading-4x",
        library="transformers",
        since="4.49",
        fixed="5",
        group="config",
        target=TARGET,
        replace=init_4x,
        upstream="none known",
        ends="continued by zamba2-config-reading-5x",
    ),
    Adapter(
        name="zamba2-config-reading-5x",
        library="transformers",
        since="5.0",
        fixed="5.5",
        group="config",
        target=TARGET,
        replace=init_5x,
        upstream="none known",
        ends="reads layer_types by itself",
    ),
    Adapter(
        name="zamba-config-reading",
        library="transformers",
        since="4.49",
        fixed="5.5",
        group="config",
        target=ZAMBA,
        replace=init_5x,
        upstream="none known",
        ends="reads layer_types by itself",
    ),
    Adapter(
        name="zamba-config-reading-newer-words",
        library="transformers",
        since="5.13",
        fixed="5.15",
        group="config",
        target=ZAMBA,
        replace=init_newer_words,
        upstream="none known",
    ),
)
