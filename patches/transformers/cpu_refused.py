"""Let bitsandbytes quantize on a CPU.

Symptom:  RuntimeError "None of the available devices ... are supported by the bitsandbytes version you have
          installed", or AttributeError: 'frozenset' object has no attribute 'discard'.
Cause:    the check was written for bitsandbytes' preview builds, where the CPU needed Intel's extension of PyTorch.
Upstream: none known; 4.53.0 dropped the condition.
Remove:   when 4.52 leaves the supported range.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter


def validate(original: Any) -> Any:
    def _validate_bnb_multi_backend_availability(raise_exception: bool) -> Any:
        import bitsandbytes
        from transformers.utils import get_available_devices

        # Copied from a frozenset, which has no discard.
        devices = set(get_available_devices()) & set(getattr(bitsandbytes, "supported_torch_devices", ()))
        return True if devices == {"cpu"} else original(raise_exception)

    return _validate_bnb_multi_backend_availability


def refuse(original: Any) -> Any:
    def _validate_bnb_cuda_backend_availability(raise_exception: bool) -> Any:
        import torch

        if raise_exception and not torch.cuda.is_available():
            from zamba_compat.layout.bitsandbytes_limits import refuse_on_cpu

            refuse_on_cpu()
        return original(raise_exception)

    return _validate_bnb_cuda_backend_availability


MODULE = "transformers.integrations.bitsandbytes"
ADAPTERS = (
    Adapter(
        name="bitsandbytes-cpu-refused",
        library="transformers",
        since="4.49",
        fixed="4.53",
        group="quantization",
        target=f"{MODULE}:_validate_bnb_multi_backend_availability",
        replace=validate,
        signature=("raise_exception",),
        upstream="none known",
        ends="fixed in 4.53",
    ),
    Adapter(
        name="bitsandbytes-too-old-for-a-cpu",
        library="transformers",
        since="4.49",
        fixed="5",
        group="quantization",
        target=f"{MODULE}:_validate_bnb_cuda_backend_availability",
        replace=refuse,
        signature=("raise_exception",),
        summary="Say which bitsandbytes can quantize on a CPU, instead of that CUDA is required.",
        upstream="none known",
        ends="refuses old releases of bitsandbytes by itself",
    ),
)
