"""Place a shared block once, under all of its names, wherever a device map puts them.

Symptom:  from_pretrained(device_map=...) with "disk" in the map, given or computed for max_memory: KeyError
          'model.layers.17.shared_transformer.input_layernorm.weight', or ValueError "weight is on the meta device";
          generate() on mixers that were offloaded: RuntimeError "Tensor on device meta ...". With several devices,
          hooks expect the block on each one that a position of it is mapped to.
Cause:    the map names layers. The loader and accelerate's hooks place each name of a tied tensor by itself, and the
          offload index has the names that are stored. The mixers read their convolution's weight without calling it.
Upstream: none known.
Remove:   when upstream places tied tensors together, as it saves them.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from zamba_compat._engine.around import around
from zamba_compat._engine.registry import Adapter, Patch


def load(original: Any) -> Any:
    def change(given: dict[str, Any]) -> AbstractContextManager[None]:
        from zamba_compat.runtime.device_map import loading

        return loading(given)

    return around(original, change)


def dispatch_model(original: Any) -> Any:
    def change(given: dict[str, Any]) -> AbstractContextManager[None]:
        from zamba_compat.runtime.device_map import dispatching

        return dispatching(given)

    return around(original, change)


def from_pretrained(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = original(cls, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        from transformers.integrations import accelerate

        from zamba_compat.runtime.device_map import is_waiting

        if is_waiting(model):  # 5.0 to 5.12 attach no hooks where "disk" is the only place
            accelerate.dispatch_model(
                model,
                device_map={},
                offload_dir=kwargs.get("offload_folder"),
                offload_buffers=kwargs.get("offload_buffers", False),
                skip_keys=model._skip_keys_device_placement,
            )
        return loaded

    return from_pretrained


def check_tied_parameters_on_same_device(original: Any) -> Any:
    def check_tied_parameters_on_same_device(tied_params: Any, device_map: Any) -> Any:
        """Without the warning per tensor of a shared block: those are about to be placed together."""
        groups = [names for names in tied_params if not any("shared_transformer." in name for name in names)]
        return original(groups, device_map)

    return check_tied_parameters_on_same_device


ADAPTERS = (
    Adapter(
        name="zamba2-device-map",
        library="transformers",
        since="4.49",
        group="placement",
        target="transformers.models.zamba2.modeling_zamba2:Zamba2PreTrainedModel._load_pretrained_model",
        replace=load,
        signature=(..., "model", "state_dict", ...),
        upstream="none known",
    ),
    Adapter(
        name="zamba2-device-map-one-place",
        library="transformers",
        since="5.0",
        fixed="5.13",
        group="placement",
        target="transformers.models.zamba2.modeling_zamba2:Zamba2PreTrainedModel.from_pretrained",
        replace=from_pretrained,
        signature=("cls", "pretrained_model_name_or_path", ...),
        upstream="none known",
    ),
    Adapter(
        name="zamba2-device-map-hooks-4x",
        library="transformers",
        since="4.49",
        fixed="5",
        group="placement",
        upstream="none known",
        ends="moved it",
        patches=(
            Patch(
                target="transformers.modeling_utils:dispatch_model",
                replace=dispatch_model,
                signature=("model", "device_map", ...),
                optional=True,  # absent without accelerate
            ),
            Patch(
                target="transformers.modeling_utils:check_tied_parameters_on_same_device",
                replace=check_tied_parameters_on_same_device,
                signature=("tied_params", "device_map"),
                optional=True,
            ),
        ),
    ),
    Adapter(
        name="zamba2-device-map-hooks",
        library="transformers",
        since="5.0",
        group="placement",
        target="transformers.integrations.accelerate:dispatch_model",
        replace=dispatch_model,
        signature=("model", "device_map", ...),
        optional=True,
        upstream="none known",
    ),
)
