"""Read one tensor at a time while a model is quantized as it is loaded.

Symptom:  load_in_4bit and load_in_8bit need the memory of the model in 16 bits first: 7B, over 18 GB on the device.
Cause:    a pool of threads reads ahead and puts every tensor on its device, faster than the loader quantizes them.
Upstream: huggingface/transformers#44576, fixed in 5.4.0.
Remove:   when 5.3 leaves the supported range.

Other models than Zamba's are left to the pool. So are checkpoints that are quantized already: what is read ahead of
these is what the model holds in the end.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

from zamba_compat._engine.registry import Adapter, Patch

OURS = ("zamba2", "zamba")

_one_by_one: ContextVar[bool] = ContextVar("zamba_compat_one_by_one", default=False)


def load(original: Any) -> Any:
    @functools.wraps(original)
    def convert_and_load_state_dict_in_model(
        model: Any, state_dict: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        quantizer = load_config.hf_quantizer
        if quantizer is None or quantizer.pre_quantized or model.config.model_type not in OURS:
            return original(model, state_dict, load_config, *args, **kwargs)
        token = _one_by_one.set(True)
        try:
            return original(model, state_dict, load_config, *args, **kwargs)
        finally:
            _one_by_one.reset(token)

    return convert_and_load_state_dict_in_model


def spawn(original: Any) -> Any:
    """Without a pool transformers returns a function that reads the tensor when its turn has come."""

    @functools.wraps(original)
    def spawn_materialize(thread_pool: Any, *args: Any, **kwargs: Any) -> Any:
        return original(None if _one_by_one.get() else thread_pool, *args, **kwargs)

    return spawn_materialize


LOADER = "transformers.core_model_loading"
ADAPTER = Adapter(
    name="quantized-one-by-one",
    library="transformers",
    since="5.0",
    fixed="5.4",
    group="loading",
    upstream="huggingface/transformers#44576",
    ends="fixed in 5.4",
    patches=(
        Patch(
            target="transformers.modeling_utils:convert_and_load_state_dict_in_model",
            replace=load,
            signature=("model", "state_dict", "load_config", ...),
        ),
        Patch(target=f"{LOADER}:spawn_materialize", replace=spawn, signature=("thread_pool", "tensor", ...)),
        Patch(target=f"{LOADER}:spawn_tp_materialize", replace=spawn, signature=("thread_pool", "tensor", ...)),
    ),
    relies=(f"{LOADER}:WeightTransform.materialize_tensors",),
)
