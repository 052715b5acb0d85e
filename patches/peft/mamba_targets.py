"""Refuse adapters on the modules whose weights the fused Mamba kernels read.

Symptom:  an adapter on out_proj or conv1d of Zamba2, or on conv1d of Zamba (v1), trains and computes on the
          plain-PyTorch path, and does nothing, without an error, where the fused kernels run.
Cause:    the kernels are handed the weight, so the wrapped module's forward is never called. PEFT refuses these
          targets for the model types in a list of its own, which has neither zamba nor zamba2.
Upstream: huggingface/peft#2556, #2562 for mamba, mamba2 and falcon_mamba, in 0.16.0; none known for Zamba.
Goes:     when PEFT lists zamba and zamba2.

As for those types, "all-linear" is refused where it covers out_proj: no target is dropped without a word. o_proj of
the attention, and in Zamba (v1) out_proj, are called as modules in every release and stay allowed.
"""

from __future__ import annotations

from typing import Any

from zamba_compat.adapters import Adapter
from zamba_compat.errors import ConfigError

READ_DIRECTLY = {"zamba2": ("out_proj", "conv1d"), "zamba": ("conv1d",)}


def check(original: Any) -> Any:
    def _check_lora_target_modules_mamba(peft_config: Any, model: Any, target_name: str) -> None:
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        refused = READ_DIRECTLY.get(model_type or "", ())
        if target_name in refused:
            names = ", ".join(f'"{name}"' for name in refused)
            raise ConfigError(
                f"{target_name} cannot have an adapter: the fused Mamba kernels read its weight and never call the "
                f"module, so that on a GPU the adapter would be ignored (model type {model_type}).",
                where="target_modules",
                remedy=f"Take it out of target_modules, or set exclude_modules=[{names}], which works with "
                '"all-linear" too.',
            )
        original(peft_config, model, target_name)

    return _check_lora_target_modules_mamba


ADAPTER = Adapter(
    name="peft-mamba-targets",
    library="peft",
    since="0.16.0",
    group="finetuning",
    target="peft.tuners.tuners_utils:_check_lora_target_modules_mamba",
    replace=check,
    signature=("peft_config", "model", "target_name"),
    upstream="huggingface/peft#2556, #2562",
)
