"""Small random models of other architectures, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.weights import State

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def write_model(directory: Path, model_type: str, seed: int, **overrides: Any) -> Path:
    """Write a model of a type that AutoConfig knows; returns `directory`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**_SMALL, **overrides})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)
    return directory


def change(directory: Path, *, drop: str = "", add: State | None = None) -> Path:
    """Rewrite the file of weights without the names that contain `drop`, and with `add`; returns `directory`."""
    file = directory / "model.safetensors"
    state = {key: tensor for key, tensor in load_file(file).items() if not drop or drop not in key}
    save_file({**state, **(add or {})}, file, {"format": "pt"})
    return directory
