"""Refuse adapters on the modules whose weights the fused Mamba kernels read.

Symptom:  an adapter on conv1d of Zamba2 or Zamba (v1) trains and does nothing, without an error, where the fused
          kernels run; one on out_proj of Zamba2 likewise in training.
Cause:    the kernels are handed the weight, so the wrapped module's forward is never called. PEFT refuses these
          targets for the model types in a list of its own, which has neither zamba nor zamba2.
Upstream: huggingface/peft#2556, #2562 for mamba, mamba2 and falcon_mamba, in 0.16.0; none known for Zamba.
Remove:   when PEFT lists zamba and zamba2.

out_proj of Zamba2 is allowed where the mixer calls it whatever kernels there are: with adapter zamba2-fused-path
applied. Else, and conv1d always, "all-linear" is refused where it covers one: no target is dropped without a word.
o_proj of the attention, and in Zamba (v1) out_proj, are called as modules in every release.
"""

from __future__ import annotations

from typing import Any

from zamba_compat._engine.registry import Adapter
from zamba_compat.errors import ConfigError

READ_DIRECTLY = {"zamba2": ("out_proj", "conv1d"), "zamba": ("conv1d",)}


def out_proj_is_called() -> bool:
    """Whether Zamba2's mixer calls out_proj in training, with kernels too: that adapter's mark on its forward."""
    import sys

    modeling = sys.modules.get("transformers.models.zamba2.modeling_zamba2")
    forward = modeling.Zamba2MambaMixer.forward if modeling is not None else None
    while forward is not None:
        if getattr(forward, "calls_out_proj", False):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def check(original: Any) -> Any:
    def _check_lora_target_modules_mamba(peft_config: Any, model: Any, target_name: str) -> None:
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        refused = READ_DIRECTLY.get(model_type or "", ())
        if "out_proj" in refused and out_proj_is_called():
            refused = tuple(name for name in refused if name != "out_proj")
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
