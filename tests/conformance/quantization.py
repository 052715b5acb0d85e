"""What the quantization tests share: methods, dequantized weights, what a model holds, checkpoints made by hand."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conformance.helpers import assert_close, logits
from conformance.helpers import case as make_case
from support import synthetic
from support.synthetic import State

METHODS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "nf4-double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.float32},
    # Every column is an outlier, so activations are not rounded to 8 bits and logits can be compared.
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 1e-9},
}
PLAIN, KERNEL = 1e-4, 2e-2  # relative, against the float64 reference with the dequantized weights


def bnb_config(method: str, **more: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**{**METHODS[method], **more})


def is_quantized(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def linears(model: nn.Module) -> dict[str, Any]:
    """The linears of the layers by name, each shared one under all its names."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear) and "layers." in name
    }


@cache
def reference_logits(pattern: str, method: str) -> Tensor:
    """The float64 reference's logits for `case(pattern, length=41)` with the weights bitsandbytes makes of its own."""
    case = make_case(pattern, length=41)
    return synthetic.forward(dequantized_state(quantized_case(pattern, method)), case.config, case.ids)


def dequantized(module: Any) -> Tensor:
    """The weight of a bitsandbytes linear, float32, (out, in)."""
    import bitsandbytes.functional as F

    if type(module).__name__ == "Linear4bit":
        return F.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    scale = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    return module.weight.data.float() * scale.float().view(-1, 1) / 127


def has_kernel() -> bool:
    """Whether this CPU and this bitsandbytes have the bfloat16 kernel for 4-bit weights."""
    import bitsandbytes.functional as F

    return bool(getattr(F, "has_avx512bf16", bool)())


def is_packed(module: Any) -> bool:
    """Whether a forward has brought the weight into the kernel's layout: a plain one has a single column."""
    return type(module).__name__ == "Linear4bit" and module.weight.shape[-1] > 1


def assert_computes(model: nn.Module, ids: Tensor, wanted: Tensor) -> None:
    """The logits are the wanted ones: METHODS compute in float32. Stock rounds that where it has its kernel."""
    rounded = has_kernel() and "zamba_compat" not in sys.modules
    assert_close(logits(model, ids), wanted, KERNEL if rounded else PLAIN)
    assert rounded or not any(is_packed(module) for module in model.modules())


def effective_state(model: nn.Module, state: State) -> State:
    """`state` with the weights that the model computes with instead, each read at its canonical layer."""
    modules = linears(model)

    def effective(key: str, tensor: Tensor) -> Tensor:
        module = modules.get(key.removesuffix(".weight"))
        return dequantized(module) if module is not None and is_quantized(module) else tensor

    return {key: effective(key, tensor) for key, tensor in state.items()}


def quantize(weight: Tensor, method: str, storage: torch.dtype = torch.uint8) -> dict[str, Tensor]:
    """What bitsandbytes stores of a weight, by the end of its name: "weight", "weight.absmax", ... or "SCB", ..."""
    import bitsandbytes.functional as F

    if method == "int8":
        rows, scale, _ = F.int8_vectorwise_quant(weight.half())
        return {"weight": rows, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    packed, quant_state = F.quantize_4bit(
        weight,
        blocksize=64,
        compress_statistics=method == "nf4-double",
        quant_type=method[:3],
        quant_storage=storage,
    )
    states = {f"weight.{name}": tensor for name, tensor in quant_state.as_dict(packed=True).items()}
    return {"weight": packed, **states}


def quantized_state(state: State, method: str, *, skip: str = " ") -> State:
    """A pre-quantized checkpoint made by hand: the linears of the layers, but for names with `skip` in them."""
    stored: State = {}
    for key, tensor in state.items():
        if tensor.ndim == 2 and "layers." in key and key.endswith(".weight") and skip not in key:
            stored |= {f"{key.removesuffix('weight')}{end}": t for end, t in quantize(tensor, method).items()}
        else:
            stored[key] = tensor
    return stored


@cache
def quantized_case(pattern: str, method: str) -> State:
    """What bitsandbytes stores of `case(pattern)`, in the hub layout; for reading only."""
    return quantized_state(make_case(pattern).state, method)


def dequantized_state(stored: State) -> State:
    """The weights that a pre-quantized checkpoint stands for, float32."""
    import bitsandbytes.functional as F

    state: State = {}
    for key, tensor in stored.items():
        owner = key.removesuffix(".weight")
        parts = {name: t for name, t in stored.items() if name.startswith(f"{key}.")}
        if f"{owner}.SCB" in stored:
            state[key] = tensor.float() * stored[f"{owner}.SCB"].float().view(-1, 1) / 127
        elif parts:
            quant_state = F.QuantState.from_dict(parts, device=torch.device("cpu"))
            state[key] = F.dequantize_4bit(tensor, quant_state).float()
        elif ".weight." not in key and not key.endswith(("SCB", "weight_format")):
            state[key] = tensor
    return state


def write_quantized(directory: Path, stored: State, config: synthetic.Config, method: str, **more: Any) -> Path:
    """Write a pre-quantized checkpoint; its config.json says what the installed release would."""
    words = bnb_config(method, **more).to_dict()
    return synthetic.write_checkpoint(directory, stored, {**config, "quantization_config": words})
