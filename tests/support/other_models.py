"""Logits of a small Llama in full precision and quantized: `python other_models.py FILE` writes stock's.

Imports nothing of the package.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENS = (1, 4, 16, 128)
# dtype of the model, and what quantizes it; those in float32 are computed in float32.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {}),
    "int8": ("bfloat16", {"load_in_8bit": True}),
    "nf4": ("bfloat16", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}),
    "fp4": ("bfloat16", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "bfloat16"}),
    "nf4 by default": ("bfloat16", {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}),
    "nf4 in float32": ("float32", {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}),
    "fp4 in float32": (
        "float32",
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "float32"},
    ),
}


def build(kind: str, directory: Path) -> Any:
    """The model of one of KINDS, from a checkpoint that is written into `directory`."""
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    dtype, words = KINDS[kind]
    if not (directory / "config.json").exists():
        torch.manual_seed(0)
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=96, num_key_value_heads=2, initializer_range=0.2, **sizes)
        LlamaForCausalLM(config).save_pretrained(directory)
    more = {"quantization_config": BitsAndBytesConfig(**words)} if words else {}
    return LlamaForCausalLM.from_pretrained(directory, torch_dtype=getattr(torch, dtype), **more).eval()


@torch.no_grad()
def logits(model: Any, tokens: int) -> Tensor:
    """Of a prompt of so many tokens, and of three more one by one."""
    ids = (torch.arange(tokens + 3) * 7 % 90 + 3)[None]
    found = model(ids[:, :tokens], use_cache=True)
    parts, cache = [found.logits], found.past_key_values
    for position in range(tokens, tokens + 3):
        found = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        parts.append(found.logits)
    return torch.cat(parts, 1)


def main() -> None:
    kinds = [kind for kind, (_, words) in KINDS.items() if not words or "bitsandbytes" in sys.argv[2:]]
    with tempfile.TemporaryDirectory() as directory:
        models = {kind: build(kind, Path(directory)) for kind in kinds}
        torch.save({f"{k} {n}": logits(model, n) for k, model in models.items() for n in TOKENS}, sys.argv[1])


if __name__ == "__main__":
    main()
