"""The names under which quantizers store a quantized weight: its values, and the other parts that belong to it.

| format | the values of weight x.weight | the other parts |
|---|---|---|
| bitsandbytes, 4 bits | x.weight | x.weight.absmax, x.weight.quant_state.bitsandbytes__nf4 ... |
| bitsandbytes, 8 bits | x.weight | x.SCB, x.weight_format |
| torchao | x._weight_qdata | x._weight_scale, x._weight_zero_point ... |
| compressed-tensors | x.weight_packed, or x.weight | x.weight_scale, x.weight_zero_point, x.weight_shape ... |
| FP8 with blocks | x.weight | x.weight_scale_inv, x.activation_scale |
| GPTQ, AWQ | x.qweight | x.qzeros, x.scales, x.g_idx |
| HQQ | x.W_q | x.scale, x.zero, x.shape, x.group_size ... |
| quanto | x.weight._data, in packed form x.weight._data._data | x.weight._scale, x.weight._shift, x.input_scale ... |
| AQLM, EETQ | x.codes, or x.weight | x.codebooks, x.scales, x.weight_scales |

Sources: `serialized_names` of transformers' quantizers; bitsandbytes.functional.QuantState.as_dict; torchao's
flatten_tensor_state_dict; compressed_tensors.compressors; hqq.core.quantize; optimum.quanto's QTensor and QModule.
"""

from __future__ import annotations

import re
from collections.abc import Collection

BITSANDBYTES = ("nf4", "fp4", "int8", "bitsandbytes")  # what `format_of` says of its formats
_4BIT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_QUANT_STATE = "quant_state."
_8BIT = ("SCB", "weight_format")
_VALUES = ("_weight_qdata", "_weight_packed_weights", "weight_packed", "qweight", "W_q", "codes")
_TORCHAO = "_weight_"
_QUANTO = ("_data", "_scale", "_shift")
_COMPRESSED = ("packed", "scale", "zero_point", "shape", "g_idx", "global_scale")
_CALIBRATED = tuple(f"{end}_{part}" for end in ("input", "output") for part in ("scale", "zero_point", "global_scale"))
_HQQ = ("nbits", "group_size", "channel_wise", "round_zero", "view_as_float", "unpack_view_dtype", "quant_scale")
_HQQ_LAST = ("quant_zero", "stores_quant_config", "offload_meta", "encoded_state_dict", "compute_dtype", "optimize")
_HQQ_META = ("scale", "zero", "shape", "axis", "packing")  # of Zamba's linears; elsewhere they may mean anything
_LINEAR = re.compile(r"(?:.*\.)?(?:\w+_proj|linear|\d+)")
_OTHERS = ("weight_scale_inv", "activation_scale", "weight_scales", "qzeros", "scales", "g_idx", "codebooks")
_TELLING = {"W_q": "HQQ", "weight_scale_inv": "FP8 with blocks", "codes": "AQLM", "weight_scales": "EETQ"}
_PARTS = {
    *_8BIT,
    *_VALUES,
    *_CALIBRATED,
    *_HQQ,
    *_HQQ_LAST,
    *_OTHERS,
    *(f"weight_{part}" for part in _COMPRESSED),
}


def weight_of(name: str) -> str | None:
    """The weight that a stored name is a part of: "x.weight.absmax", "x.SCB", "x.qweight" -> "x.weight"; else None."""
    found = _split(name)
    return None if found is None else found[0]


def base_of(name: str) -> str:
    """As `weight_of`, and the name itself where it is no part of a quantized weight."""
    found = _split(name)
    return name if found is None else found[0]


def part_of(name: str) -> str | None:
    """What a stored name is to its weight: "absmax", "quant_state.bitsandbytes__nf4", "SCB", "qweight"; else None."""
    found = _split(name)
    return None if found is None else found[1]


def holds_values(name: str) -> bool:
    """Whether a part holds the values of its weight, in the place of x.weight itself."""
    part = part_of(name)
    return part in _VALUES or part in ("_data", "_data._data")


def is_weight(name: str) -> bool:
    """Whether a stored name stands for one weight: a plain one's, or the values of a quantized one."""
    return base_of(name) == name or holds_values(name)


def format_of(parts: Collection[str]) -> str:
    """The format of one weight, from its parts: "nf4", "fp4", "int8" (bitsandbytes), "torchao" and so on."""
    state = next((part for part in parts if part.startswith(_QUANT_STATE)), None)
    if state is not None:
        return state.rpartition("__")[2]
    if "SCB" in parts:
        return "int8"
    if any(part.startswith(_TORCHAO) for part in parts):
        return "torchao"
    if any(part.split(".")[0] in _QUANTO for part in parts):
        return "quanto"
    for part, name in _TELLING.items():
        if part in parts:
            return name
    if "qweight" in parts:
        return "GPTQ" if "g_idx" in parts else "AWQ"
    if "weight_scale" in parts or "weight_packed" in parts:
        return "compressed-tensors"
    return "bitsandbytes" if any(part in _4BIT for part in parts) else "unknown"


def is_bitsandbytes(name: str) -> bool:
    """Whether a stored name is a part that bitsandbytes stores."""
    part = part_of(name)
    return part is not None and (part in _4BIT or part in _8BIT or part.startswith(_QUANT_STATE))


def _split(name: str) -> tuple[str, str] | None:
    module, marker, part = name.rpartition(".weight.")
    if marker and (part in _4BIT or part.startswith(_QUANT_STATE) or part.split(".")[0] in _QUANTO):
        return f"{module}.weight", part
    module, _, part = name.rpartition(".")
    known = part in _PARTS or part.startswith(_TORCHAO) or (part in _HQQ_META and _LINEAR.fullmatch(module))
    return (f"{module}.weight", part) if module and known else None
