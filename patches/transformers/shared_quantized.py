"""Quantize the shared blocks too, once, by whatever quantizer transformers has.

Symptom:  torchao, quanto, FP8: every shared block stays in 16 bits, silently. With the blocks asked for, each position
          is quantized by itself; what torchao saves of it loads nowhere; compressed-tensors: AttributeError
          "... has no attribute 'weight'".
Cause:    get_keys_to_not_convert takes every tied parameter for an embedding; ties are of parameters, which quantizers
          replace by others.
Upstream: none known.
Remove:   when upstream skips tied embeddings only, and holds one module per shared block.
"""

from __future__ import annotations

import functools
from typing import Any

from zamba_compat._engine.registry import Adapter, Patch

OURS = ("zamba2", "zamba")


def preprocess_model(original: Any) -> Any:
    @functools.wraps(original)
    def preprocess_model(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        from zamba_compat.runtime.quantizers import after_replacing, before_loading, is_bitsandbytes

        if model.config.model_type not in OURS or is_bitsandbytes(self):
            return original(self, model, *args, **kwargs)
        from zamba_compat.runtime.stored import names_in

        files = [file for file in kwargs.get("checkpoint_files") or () if str(file).endswith(".safetensors")]
        before_loading(self, model, [name for file in files for name in names_in(file)])
        result = original(self, model, *args, **kwargs)
        after_replacing(model)
        return result

    return preprocess_model


def get_modules_to_not_convert(original: Any) -> Any:
    @functools.wraps(original)
    def get_modules_to_not_convert(model: Any, skip_modules: Any = None, *args: Any, **kwargs: Any) -> Any:
        found = original(model, skip_modules, *args, **kwargs)
        if model.config.model_type not in OURS:
            return found
        from zamba_compat.runtime.quantizers import modules_to_skip

        return modules_to_skip(model, found, skip_modules)

    return get_modules_to_not_convert


def load(original: Any) -> Any:
    import inspect

    signature = inspect.signature(original)

    @functools.wraps(original)
    def _load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
        model = signature.bind(*args, **kwargs).arguments["model"]
        result = original(*args, **kwargs)
        if getattr(model, "is_quantized", False):
            from zamba_compat.runtime.quantizers import without_aliases

            info = result[0] if isinstance(result, tuple) else result
            info.missing_keys = without_aliases(info.missing_keys, model)
        return result

    return _load_pretrained_model


ADAPTERS = (
    Adapter(
        name="shared-quantized",
        library="transformers",
        since="5.0",
        group="quantization",
        upstream="none known",
        patches=(
            Patch(
                target="transformers.quantizers.base:HfQuantizer.preprocess_model",
                replace=preprocess_model,
                signature=("self", "model", ...),
            ),
            Patch(
                target="transformers.quantizers.base:HfQuantizer.get_modules_to_not_convert",
                replace=get_modules_to_not_convert,
                signature=("model", "skip_modules", ...),
            ),
        ),
    ),
    *(
        Adapter(
            name=f"{model_type}-quantized-once",
            library="transformers",
            since="5.0",
            group="quantization",
            target=f"transformers.models.{model_type}.modeling_{model_type}:{cls}._load_pretrained_model",
            replace=load,
            signature=(..., "model", "state_dict", ...),
            upstream="none known",
        )
        for model_type, cls in (("zamba2", "Zamba2PreTrainedModel"), ("zamba", "ZambaPreTrainedModel"))
    ),
)
