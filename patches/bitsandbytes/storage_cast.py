"""Cast no quantized bytes, whatever dtype they are stored in.

Symptom:  with bnb_4bit_quant_storage of float32, float16 or bfloat16, casting a quantized module, .to(torch.float16) or
          .half(), leaves garbage without an error, or a weight of a size that no forward accepts.
Cause:    the bytes are kept in a tensor of a floating dtype, and a cast takes them for numbers.
Upstream: none known.
Remove:   when Params4bit.to ignores a dtype once the weight is quantized, and so do half(), float() and bfloat16().
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter, Patch


def _stored_as_float(weight: Any) -> bool:
    return bool(getattr(weight, "bnb_quantized", False) and weight.dtype.is_floating_point)


def to(original: Any) -> Any:
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _stored_as_float(self):
            return original(self, *args, **kwargs)
        import torch

        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is None or dtype == self.dtype:
            return original(self, *args, **kwargs)
        return original(self, device=device or self.device, non_blocking=non_blocking)

    return to


def apply(original: Any) -> Any:
    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        import torch

        if not _stored_as_float(self.weight):
            return original(self, fn, recurse)
        stored = self.weight.dtype
        self.weight.data = self.weight.data.view(torch.uint8)
        try:
            return original(self, fn, recurse)
        finally:
            self.weight.data = self.weight.data.view(stored)

    return _apply


ADAPTER = Adapter(
    name="bitsandbytes-storage-cast",
    library="bitsandbytes",
    since="0.45",
    group="quantization",
    patches=(
        Patch(
            target="bitsandbytes.nn.modules:Params4bit.to",
            replace=to,
            signature=("self", "*args", "**kwargs"),
        ),
        Patch(
            target="bitsandbytes.nn.modules:Linear4bit._apply",
            replace=apply,
            signature=("self", "fn", "recurse"),
        ),
    ),
    upstream="none known",
)
