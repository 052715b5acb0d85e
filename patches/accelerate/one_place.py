"""Load and place a shared block once, under all of its names, where accelerate is called directly.

Symptom:  load_checkpoint_and_dispatch and dispatch_model with a block on the CPU and on the disk: KeyError
          'model.layers.17.shared_transformer.input_layernorm.weight'. Checkpoints that hold a block elsewhere than at
          its first layer: tensors that stay on the meta device.
Cause:    the offload index has the names that are stored; the map names layers.
Upstream: none known.
Remove:   when accelerate places tied tensors together.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from zamba_compat._engine.around import around
from zamba_compat._engine.registry import Adapter, Patch


def load_checkpoint_in_model(original: Any) -> Any:
    import inspect

    signature = inspect.signature(original)

    @functools.wraps(original)
    def load_checkpoint_in_model(*args: Any, **kwargs: Any) -> Any:
        from zamba_compat.runtime.accelerated import load_in_model

        return load_in_model(original, **signature.bind(*args, **kwargs).arguments)

    return load_checkpoint_in_model


def dispatch_model(original: Any) -> Any:
    def change(given: dict[str, Any]) -> AbstractContextManager[None]:
        from zamba_compat.runtime.device_map import dispatching

        return dispatching(given)

    return around(original, change)


ADAPTER = Adapter(
    name="accelerate-one-place",
    library="accelerate",
    since="1.15",  # older ones fail with an error of their own, and were not mended
    group="placement",
    upstream="none known",
    patches=(
        Patch(
            target="accelerate.big_modeling:load_checkpoint_in_model",
            replace=load_checkpoint_in_model,
            signature=("model", "checkpoint", "device_map", ...),
        ),
        Patch(
            target="accelerate.big_modeling:dispatch_model",
            replace=dispatch_model,
            signature=("model", "device_map", ...),
        ),
    ),
)
