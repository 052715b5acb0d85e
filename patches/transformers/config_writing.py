"""Write configs that every release in range reads.

Symptom:  a checkpoint saved by 5.13 or later fails in older releases with StopIteration; one saved by 5.0 or later has
          lost its rope_theta in 4.x, silently.
Cause:    see config_reading.py. The published checkpoints use the older words, which every release understands.
Upstream: none known.
Remove:   when every supported release writes and reads the same words.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def to_json_string(original: Any) -> Any:
    def to_json_string(self: Any, use_diff: bool = True) -> str:
        import json

        from zamba_compat.layout.config import OLDER_TYPES

        config = json.loads(original(self, use_diff=use_diff))
        types = config.pop("layer_types", None) or config.get("layers_block_type")
        if types is not None:
            config["layers_block_type"] = [OLDER_TYPES.get(name, name) for name in types]
        rope = config.get("rope_parameters")
        if rope:
            config["rope_theta"] = rope.get("rope_theta", 10000.0)
            if rope.get("rope_type", "default") == "default":
                del config["rope_parameters"]
        if "dtype" in config:
            config.setdefault("torch_dtype", config.pop("dtype"))
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    return to_json_string


ADAPTERS = tuple(
    Adapter(
        name=f"{model_type}-config-writing",
        library="transformers",
        since=since,
        group="config",
        target=f"transformers.models.{model_type}.configuration_{model_type}:{cls}.to_json_string",
        replace=to_json_string,
        signature=("self", "use_diff"),
        upstream="none known",
    )
    for model_type, cls, since in (("zamba2", "Zamba2Config", "4.49"), ("zamba", "ZambaConfig", "4.56"))
)
