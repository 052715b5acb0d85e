"""Save a model that was loaded quantized.

Symptom:  NotImplementedError from save_pretrained of any model whose checkpoint was quantized by bitsandbytes.
Cause:    saving reverts the conversions that loading made, and the deserialization of a quant state has no reverse:
          the state dict holds the serialized form already.
Upstream: none known.
Goes:     when upstream leaves these conversions out of `_weight_conversions`.
"""

from __future__ import annotations

import functools
from typing import Any

from zamba_compat._engine.registry import Adapter


def save(original: Any) -> Any:
    @functools.wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        conversions = getattr(self, "_weight_conversions", None)
        if not conversions:
            return original(self, *args, **kwargs)
        self._weight_conversions = [conversion for conversion in conversions if not reads_quant_states(conversion)]
        try:
            return original(self, *args, **kwargs)
        finally:
            self._weight_conversions = conversions

    return save_pretrained


def reads_quant_states(conversion: Any) -> bool:
    operations = getattr(conversion, "operations", None) or ()
    return any(type(operation).__name__ in ("Bnb4bitDeserialize", "Bnb8bitDeserialize") for operation in operations)


ADAPTERS = tuple(
    Adapter(
        name=f"{model_type}-saved-again",
        library="transformers",
        since="5.0",
        group="saving",
        target=f"transformers.models.{model_type}.modeling_{model_type}:{cls}.save_pretrained",
        replace=save,
        relies=("transformers.core_model_loading:revert_weight_conversion",),
        signature=("self", "save_directory", "is_main_process", "state_dict", ...),
        upstream="none known",
    )
    for model_type, cls in (("zamba2", "Zamba2PreTrainedModel"), ("zamba", "ZambaPreTrainedModel"))
)
