"""Say that 4-bit products run in float32 where nobody asked for it.

Symptom:  on a GPU a 4-bit model of 16 bits is several times as slow as it could be, without a word.
Cause:    BitsAndBytesConfig takes a missing bnb_4bit_compute_dtype for float32, whose products leave a GPU's tensor
          cores out.
Upstream: none; float32 is the documented default.
Remove:   when upstream takes the model's dtype instead.

Nothing is changed, for float32 is what was asked for as far as bitsandbytes knows: one line per process tells. A
checkpoint's config.json always names a dtype, so there float32 is told too; of a config that is passed, only where the
argument was left out.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

from zamba_compat._engine.registry import Adapter, Patch

OURS = ("zamba2", "zamba")
ELSEWHERE = ("cpu", "disk", "meta")  # places without tensor cores
COST = "its 4-bit products run in float32, without the GPU's tensor cores, though the model is in %s"

_left_out: dict[int, weakref.ref[Any]] = {}  # a dataclass that compares by value has no hash
_told = False


def init(original: Any) -> Any:
    import inspect

    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if signature.bind(self, *args, **kwargs).arguments.get("bnb_4bit_compute_dtype") is None:
            note(self)

    return __init__


def deepcopy(_: None) -> Any:
    """AutoModel's from_pretrained works on a copy."""

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        import copy

        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        if was_left_out(self):
            note(made)
        return made

    return __deepcopy__


def note(config: Any) -> None:
    """Remember, outside of the config, which is saved as it is, that its dtype was left out."""
    key = id(config)
    _left_out[key] = weakref.ref(config, lambda _: _left_out.pop(key, None))


def was_left_out(config: Any) -> bool:
    noted = _left_out.get(id(config))
    return noted is not None and noted() is config


def before_loading(original: Any) -> Any:
    @functools.wraps(original)
    def _process_model_before_weight_loading(self: Any, model: Any, device_map: Any, *args: Any, **kwargs: Any) -> Any:
        if model.config.model_type in OURS:
            tell(self.quantization_config, self.pre_quantized, model.dtype, device_map)
        return original(self, model, device_map, *args, **kwargs)

    return _process_model_before_weight_loading


def tell(config: Any, pre_quantized: bool, dtype: Any, device_map: Any) -> None:
    """Warn, once per process.

    Args:
        config: the BitsAndBytesConfig.
        pre_quantized: whether it is a checkpoint's own.
        dtype: of the model.
        device_map: a device per module, as transformers has resolved it.
    """
    global _told
    import torch

    places = device_map.values() if isinstance(device_map, dict) else ()
    if _told or config.bnb_4bit_compute_dtype != torch.float32 or dtype not in (torch.bfloat16, torch.float16):
        return
    if all(str(place) in ELSEWHERE for place in places):
        return
    if pre_quantized:
        where = "quantization_config in the checkpoint's config.json has bnb_4bit_compute_dtype float32"
        remedy = "Write %s there."
    elif was_left_out(config):
        where = "BitsAndBytesConfig was given no bnb_4bit_compute_dtype"
        remedy = "Pass bnb_4bit_compute_dtype=torch.%s; torch.float32 if that is meant."
    else:
        return
    import logging

    _told = True
    name = str(dtype).removeprefix("torch.")
    logging.getLogger("zamba_compat").warning(f"{where}: {COST}. {remedy}", name, name)


CONFIG = "transformers.utils.quantization_config:BitsAndBytesConfig"
ADAPTER = Adapter(
    name="four-bit-dtype-left-out",
    library="transformers",
    since="4.49",
    group="quantization",
    upstream="none: float32 is the documented default",
    patches=(
        Patch(
            target=f"{CONFIG}.__init__",
            replace=init,
            signature=("self", ..., "bnb_4bit_compute_dtype", ..., "**kwargs"),
        ),
        Patch(target=f"{CONFIG}.__deepcopy__", replace=deepcopy, add=True),
        Patch(
            target="transformers.quantizers.quantizer_bnb_4bit:Bnb4BitHfQuantizer._process_model_before_weight_loading",
            replace=before_loading,
            signature=("self", "model", "device_map", ...),
        ),
    ),
)
