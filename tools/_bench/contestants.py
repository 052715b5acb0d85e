"""The models that tools/bench_inference.py runs, with random weights. Stock and Llama never import zamba_compat."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import torch

from make_checkpoint import weights

NOT_QUANTIZED = ("lm_head", "conv1d")


def llama_config(zamba: dict[str, Any], parameters: int) -> dict[str, Any]:
    """A Llama as wide as a Zamba2, with its vocabulary, and as many layers as bring it nearest to `parameters`."""
    hidden, inner, vocabulary = zamba["hidden_size"], zamba["intermediate_size"], zamba["vocab_size"]
    per_layer = 4 * hidden**2 + 3 * hidden * inner
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": max(1, round((parameters - vocabulary * hidden) / per_layer)),
        "num_attention_heads": max(1, hidden // 128),
        "num_key_value_heads": max(1, hidden // 128),
        "tie_word_embeddings": True,
        "max_position_embeddings": 16384,
    }


def hold_bitsandbytes() -> None:
    """Keep bitsandbytes from AVX512-BF16 where ONEDNN_MAX_CPU_ISA keeps oneDNN from it; it asks the processor itself.

    Before zamba_compat is imported, whose adapters ask bitsandbytes.
    """
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if held in ("ALL", "DEFAULT", "") or "BF16" in held or "FP16" in held or "AMX" in held:
        return
    importlib.import_module("bitsandbytes")
    for name, module in list(sys.modules.items()):
        if name.startswith("bitsandbytes.") and hasattr(module, "has_avx512bf16"):
            module.has_avx512bf16 = lambda: False  # type: ignore[attr-defined]


def build(config: dict[str, Any], dtype: torch.dtype, device: str, nf4: bool) -> Any:
    """A model of a config.json's content in eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**config)
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    torch.set_default_dtype(torch.float32)
    model.to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        small = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 1}
        for name, tensor in weights(small, 0, dtype):
            model.get_parameter(name).copy_(tensor)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = 0.02 if "embed" in name else parameter.shape[-1] ** -0.5
                parameter.normal_(0, scale, generator=generator)
        for module in model.modules():  # to_empty leaves the frequencies undefined
            if hasattr(module, "inv_freq"):
                fresh = type(module)(made)
                module.inv_freq = fresh.inv_freq.to(device)
                module.original_inv_freq = fresh.original_inv_freq
    return (_in_nf4(model, device) if nf4 else model).eval()


def _in_nf4(model: Any, device: str) -> Any:
    """The linear layers but the head in NF4 with double quantization; one object per weight that is shared."""
    import bitsandbytes as bnb

    made: dict[int, Any] = {}
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is not torch.nn.Linear or name in NOT_QUANTIZED:
                continue
            key = child.weight.data_ptr()
            if key not in made:
                new = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    compress_statistics=True,
                    quant_type="nf4",
                )
                new.weight = bnb.nn.Params4bit(
                    child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                made[key] = new.to(device)
            setattr(owner, name, made[key])
    return model


def cache_bytes(cache: Any) -> int:
    """Bytes in the tensors of a cache, however it holds them."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            seen[value.untyped_storage().data_ptr()] = value.nbytes
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("transformers."):
            visit(vars(value))

    visit(getattr(cache, "layers", None) or vars(cache))
    return sum(seen.values())
