"""Quantize the shared blocks too.

Symptom:  bitsandbytes 4-bit and 8-bit loading leaves every shared block in 16 bits, silently (1.07 GB in 7B).
Cause:    get_keys_to_not_convert takes every tied parameter for an embedding and puts it on the skip list.
Upstream: none known.
Remove:   when upstream skips tied embeddings only.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def before_loading(original: Any) -> Any:
    def _process_model_before_weight_loading(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if model.config.model_type in ("zamba2", "zamba"):
            from zamba_compat.runtime.bitsandbytes import with_skip_list

            self.quantization_config = with_skip_list(self.quantization_config, model, skipped_by_default(model))
        return original(self, model, *args, **kwargs)

    return _process_model_before_weight_loading


def skipped_by_default(model: Any) -> list[str]:
    try:
        from transformers.quantizers.base import get_keys_to_not_convert  # 5.x
    except ImportError:
        from transformers.integrations import get_keys_to_not_convert
    return list(get_keys_to_not_convert(model))


ADAPTERS = tuple(
    Adapter(
        name=f"shared-skipped-{bits}bit",
        library="transformers",
        since="4.49",
        group="quantization",
        target=f"transformers.quantizers.quantizer_bnb_{bits}bit:{cls}._process_model_before_weight_loading",
        replace=before_loading,
        relies=("transformers.quantizers.base:get_keys_to_not_convert",),
        signature=("self", "model", "device_map", ...),
        upstream="none known",
    )
    for bits, cls in ((4, "Bnb4BitHfQuantizer"), (8, "Bnb8BitHfQuantizer"))
)
