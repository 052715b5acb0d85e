"""Leave a packed 4-bit weight's bytes alone while it is loaded.

Symptom:  a checkpoint with bnb_4bit_quant_storage float16 or bfloat16 does not survive loading in another dtype:
          RuntimeError "shape ... is invalid for input of size ...", or wrong weights.
Cause:    the loader takes the packed bytes for floating point numbers and casts them to the model's dtype.
Upstream: none known; 5.0.0 replaced the loader.
Remove:   when 4.57 leaves the supported range.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def create(original: Any) -> Any:
    def create_quantized_param(
        self: Any, model: Any, param_value: Any, param_name: str, target_device: Any, state_dict: Any, *args: Any
    ) -> Any:
        stored = state_dict.get(param_name)
        if self.pre_quantized and stored is not None and stored.dtype != param_value.dtype:
            param_value = stored
        return original(self, model, param_value, param_name, target_device, state_dict, *args)

    return create_quantized_param


def infer(original: Any) -> Any:
    def _infer_parameter_dtype(
        model: Any, param_name: str, empty_param: Any, keep: Any = None, hf_quantizer: Any = None
    ) -> Any:
        if getattr(hf_quantizer, "pre_quantized", False) and param_name.endswith(".weight"):
            from zamba_compat.runtime.bitsandbytes import is_quantized

            if is_quantized(model.get_submodule(param_name.removesuffix(".weight"))):
                return True, None
        return original(model, param_name, empty_param, keep, hf_quantizer)

    return _infer_parameter_dtype


ADAPTERS = (
    Adapter(
        name="packed-weight-cast-449",
        library="transformers",
        since="4.49",
        fixed="4.50",
        group="quantization",
        target="transformers.quantizers.quantizer_bnb_4bit:Bnb4BitHfQuantizer.create_quantized_param",
        replace=create,
        signature=("self", "model", "param_value", "param_name", "target_device", "state_dict", "unexpected_keys"),
        upstream="none known",
        ends="continued by packed-weight-cast",
    ),
    Adapter(
        name="packed-weight-cast",
        library="transformers",
        since="4.50",
        fixed="5",
        group="quantization",
        target="transformers.modeling_utils:_infer_parameter_dtype",
        replace=infer,
        signature=("model", "param_name", "empty_param", ..., "hf_quantizer"),
        upstream="none known",
        ends="replaced the loader",
    ),
)
